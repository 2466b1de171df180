"""Workers that take paid orders from a queue and track them."""
