"""Programs that run as they are; README.md tells how."""
