"""What happened in the shop: events, the rules for their fields, and their JSON."""
