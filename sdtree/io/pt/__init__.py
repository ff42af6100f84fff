"""Files in the format of torch."""
