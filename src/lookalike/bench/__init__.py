"""Measuring every candidate, choosing one and writing down why."""
