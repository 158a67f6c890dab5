"""What finished runs have shown: their records, rows over seeds, statistics, and what may be said of them."""
