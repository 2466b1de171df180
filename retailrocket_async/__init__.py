"""The asyncio SDK for Retail Rocket's user-behaviour tracking API."""
