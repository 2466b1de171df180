"""Sends one request to the tracking API, and interprets the answer."""
