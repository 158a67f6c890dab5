"""The classic loop and our own paths beside each other, in one run."""
