"""Methods against each other: which runs that takes, and how they are carried out."""
