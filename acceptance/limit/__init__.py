"""A run that checks the request limit while there are always events to send: `python -m acceptance.limit`."""
