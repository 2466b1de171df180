"""Scenarios for all faults of the API, one scenario per fault: `python -m acceptance.faults`."""
