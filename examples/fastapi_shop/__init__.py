"""A small shop on FastAPI."""
