"""Data sets as uint8 arrays, splits, and batches whose order and augmentation are pure functions."""
