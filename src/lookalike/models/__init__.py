"""Backbones, heads, preprocessing, encoders, and the bundles that store them."""
