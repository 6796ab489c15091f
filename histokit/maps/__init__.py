"""Maps of new slides from trained runs."""
