"""How leaves lie in files: what they share, where they lie, which parts are read."""
