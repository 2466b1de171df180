"""Long runs that prove the promises of the package; README.md names them."""
