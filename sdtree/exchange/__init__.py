"""What ranks exchange: planned, agreed on, carried out."""
