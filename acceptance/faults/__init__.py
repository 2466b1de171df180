"""Every fault of the API, one scenario each: `python -m acceptance.faults`."""
