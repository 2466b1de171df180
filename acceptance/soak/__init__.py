"""A million events through a server that fails at random: `python -m acceptance.soak`."""
