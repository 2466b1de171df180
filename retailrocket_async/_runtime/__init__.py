"""Helpers for event loops, tasks, threads and processes, and for calling code of the user."""
