"""Experiment trackers: TensorBoard and MLflow, off by default."""
