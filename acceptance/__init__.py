"""Long runs that check the promises of the package; README.md lists the runs."""
