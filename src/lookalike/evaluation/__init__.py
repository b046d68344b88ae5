"""Measures, exact ranking, bootstrap intervals, submission files. NumPy only."""
