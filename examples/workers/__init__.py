"""Workers that track orders when they are paid, which they hear of from a queue."""
