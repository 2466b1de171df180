"""The report of a run: the machine, and the tables and plots of the documentation."""
