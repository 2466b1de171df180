"""The events of a shop: their classes, the rules for their fields, and their JSON."""
