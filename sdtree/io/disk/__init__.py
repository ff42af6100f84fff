"""The bytes of files: where they go, and how they are mapped and read."""
