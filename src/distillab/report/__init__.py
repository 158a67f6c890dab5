"""The report: what runs have shown, as one page and as files."""
