"""The engine: takes batches off the queue, sends them, and settles every event."""
