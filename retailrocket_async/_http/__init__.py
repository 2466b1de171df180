"""One request to the tracking API, and what its answer means."""
