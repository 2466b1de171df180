"""Runs that check promises for several processes: `python -m acceptance.fleet`."""
