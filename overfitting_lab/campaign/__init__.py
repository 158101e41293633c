"""The campaign: every run behind a published figure, and the pages that quote the figures."""
