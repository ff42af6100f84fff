"""Rules of conversion: which elements of which leaves become which of which."""
