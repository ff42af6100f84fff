"""Folders as the Hugging Face Hub has them: shards, and an index of their names."""
