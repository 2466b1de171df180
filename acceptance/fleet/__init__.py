"""Promises that hold beyond one process: `python -m acceptance.fleet`."""
