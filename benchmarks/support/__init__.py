"""Processes, servers, meters and tables: what the benchmarks and the acceptance runs share."""
