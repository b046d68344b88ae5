"""Searching images by example and showing what was found."""
