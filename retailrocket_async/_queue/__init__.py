"""What waits, bounded: no await, no clock, no input or output."""
