"""The request limit under endless demand: `python -m acceptance.limit`."""
