"""The common code of the example shops: the catalogue, the basket and the pages."""
