"""How values are shown: listings, outlines, pictures."""
