"""Data sets: layouts, image reading, checks, duplicates, splits, demo images."""
