"""Experiment trackers for those who want them: TensorBoard and MLflow, off by default.

A target is written as `tensorboard`, `tensorboard=FOLDER`, `mlflow` or `mlflow=URI`.
"""

from lookalike.tracking.target import TRACKERS, Target, parse_targets
from lookalike.tracking.tracked import UNTRACKED, Tracked, begin_tracked

__all__ = ["TRACKERS", "UNTRACKED", "Target", "Tracked", "begin_tracked", "parse_targets"]
