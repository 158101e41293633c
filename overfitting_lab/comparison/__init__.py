"""Several runs beside each other: statistics, charts and the report."""
