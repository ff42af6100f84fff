"""How fast sdtree is and how much memory it takes, beside torch and the machine."""
