"""How fast the project is, beside what one would write otherwise: every figure a ratio within one run."""
