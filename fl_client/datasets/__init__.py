"""A device's own data: their sources, how they are stored and split, and how they change."""
