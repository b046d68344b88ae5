"""Measure candidates, select the winner, report both."""
