"""Several processes of one run: which program starts them, where they meet, and how they end together."""
