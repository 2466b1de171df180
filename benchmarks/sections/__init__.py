"""The sections of the benchmarks: each module measures one thing and returns a `Section`."""
