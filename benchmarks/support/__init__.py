"""Processes, servers, meters and tables that the benchmarks and the acceptance runs use."""
