"""Where the arithmetic happens."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """Return the first accelerator, else the CPU."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found is not None:
            return found
    return torch.device("cpu")
