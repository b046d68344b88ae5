"""Measures, exact ranking, bootstrap intervals, submission files and their posting. NumPy only."""
