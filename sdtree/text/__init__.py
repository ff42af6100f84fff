"""How things read: tables, words, HTML that is safe by construction."""
