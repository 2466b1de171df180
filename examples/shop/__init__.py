"""What the shops of the examples have in common: the catalogue, the basket, the pages."""
