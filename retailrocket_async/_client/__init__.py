"""The public client, and a handle through which other threads use the client."""
