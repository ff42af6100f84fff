"""Which leaves are meant, and where they stand."""
