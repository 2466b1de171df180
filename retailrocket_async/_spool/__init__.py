"""Events on disk until they have an outcome, across restarts and processes."""
