"""A run that sends a million events to a server that fails at random: `python -m acceptance.soak`."""
