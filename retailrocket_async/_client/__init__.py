"""The public client, and its handle for other threads."""
