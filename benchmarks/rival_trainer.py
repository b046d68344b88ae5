"""The same backbone trained with the trainer of pytorch-metric-learning, for benchmarks/training.py.

`TrainWithClassifier` with cross-entropy and a mined multi-similarity loss, its sampler with four images per class,
AdamW at the peak learning rates of our recipe with cosine decay to zero, fixed batch statistics, the crops of its
example (scale 0.16 to 1), for as many minutes as our head and our whole recipe took. It trains in float32: the trainer
has no mixed precision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses, miners, samplers, trainers
from torch import nn
from torchvision import transforms

from lookalike.data.dataset import Item
from lookalike.data.images import read_image
from lookalike.models.encoder import Encoder
from lookalike.models.info import FINE_TUNED
from lookalike.models.trainable import build_trainable
from lookalike.runtimes.select import with_runtime

BATCH_SIZE = 32


class TrainingImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Random views of training images with their class indices."""

    def __init__(self, items: Sequence[Item], targets: Sequence[int], transform: transforms.Compose) -> None:
        self.items, self.targets, self.transform = items, targets, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(read_image(self.items[number].path)), self.targets[number]


class TimeIsUpError(Exception):
    """Stops the trainer within an epoch."""


def train_with_metric_learning(
    items: Sequence[Item],
    targets: np.ndarray,
    backbone: str,
    weights: str | Path,
    *,
    lr: float,
    head_lr: float,
    seconds: float,
    seed: int,
) -> Encoder:
    """Train for `seconds`, and return backbone and head as an encoder that is measured like ours."""
    torch.manual_seed(seed)
    encoder = build_trainable(backbone, weights, seed=seed)
    p = encoder.preprocessing
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop((p.height, p.width), scale=(0.16, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(p.mean, p.std),
        ]
    )
    classifier = nn.Linear(encoder.dim, int(targets.max()) + 1)
    models = {"trunk": encoder.module, "embedder": encoder.head.linear, "classifier": classifier}
    rates = {"trunk": lr, "embedder": head_lr, "classifier": head_lr}
    optimizers = {
        f"{name}_optimizer": torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.02)
        for name, module in models.items()
    }
    started = time.perf_counter()
    steps = 0

    def after_step(_trainer: trainers.BaseTrainer) -> None:
        nonlocal steps
        steps += 1
        elapsed = time.perf_counter() - started
        if elapsed > seconds:
            raise TimeIsUpError
        share = 0.5 * (1 + math.cos(math.pi * elapsed / seconds)) * min(1, elapsed / (0.1 * seconds))
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name.removesuffix("_optimizer")] * share

    trainer = trainers.TrainWithClassifier(
        models,
        optimizers,
        BATCH_SIZE,
        {"metric_loss": losses.MultiSimilarityLoss(), "classifier_loss": nn.CrossEntropyLoss()},
        TrainingImages(items, targets.tolist(), view),
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        sampler=samplers.MPerClassSampler(targets, m=4, length_before_new_iter=len(items)),
        freeze_trunk_batchnorm=True,
        end_of_iteration_hook=after_step,
    )
    try:
        trainer.train(num_epochs=1000)
    except TimeIsUpError:
        print(f"  pytorch-metric-learning: {steps} steps of {BATCH_SIZE} images in {seconds / 60:.1f} minutes")
    encoder.module.eval()
    encoder.head.eval()
    encoder.trained, encoder.head_origin = FINE_TUNED, "pytorch-metric-learning"
    return with_runtime(encoder.freeze())
