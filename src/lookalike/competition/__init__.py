"""The best submission before a deadline."""
