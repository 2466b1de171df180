"""A small shop on aiohttp."""
