"""The same backbone trained by pytorch-metric-learning's own trainer, for benchmarks/training.py.

`TrainWithClassifier` with cross-entropy and a mined multi-similarity loss, its sampler of four images a class, AdamW at
the peak rates of our recipe with a cosine to zero, batch norm statistics kept, the crops of its example (scale 0.16 to
1), for as many minutes as our head and our whole recipe took. It trains in float32: it has no mixed precision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lookalike.models.pretrained import build_trainable
from pytorch_metric_learning import losses, miners, samplers, trainers
from torch import nn
from torchvision import transforms

from lookalike.data.dataset import Item
from lookalike.data.images import read_image
from lookalike.models.encoder import Encoder

BATCH_SIZE = 32


class Photographs(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Random views of training images with their class rows."""

    def __init__(self, items: Sequence[Item], rows: Sequence[int], transform: transforms.Compose) -> None:
        self.items, self.rows, self.transform = items, rows, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(read_image(self.items[number].path)), self.rows[number]


class TimeIsUpError(Exception):
    """Ends the trainer, which otherwise stops after whole epochs only."""


def train_with_its_trainer(
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
    """Train for that long and return the backbone with the trained embedder as our encoder, to be measured alike."""
    torch.manual_seed(seed)
    member = build_trainable(backbone, weights, seed=seed)
    p = member.preprocessing
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop((p.height, p.width), scale=(0.16, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(p.mean, p.std),
        ]
    )
    classifier = nn.Linear(member.dim, int(targets.max()) + 1)
    models = {"trunk": member.module, "embedder": member.head.linear, "classifier": classifier}
    rates = {"trunk": lr, "embedder": head_lr, "classifier": head_lr}
    optimizers = {
        f"{name}_optimizer": torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.02)
        for name, module in models.items()
    }
    began = time.perf_counter()
    steps = 0

    def after_step(_trainer: trainers.BaseTrainer) -> None:
        nonlocal steps
        steps += 1
        gone = time.perf_counter() - began
        if gone > seconds:
            raise TimeIsUpError
        share = 0.5 * (1 + math.cos(math.pi * gone / seconds)) * min(1, gone / (0.1 * seconds))
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name.removesuffix("_optimizer")] * share

    trainer = trainers.TrainWithClassifier(
        models,
        optimizers,
        BATCH_SIZE,
        {"metric_loss": losses.MultiSimilarityLoss(), "classifier_loss": nn.CrossEntropyLoss()},
        Photographs(items, targets.tolist(), view),
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        sampler=samplers.MPerClassSampler(targets, m=4, length_before_new_iter=len(items)),
        freeze_trunk_batchnorm=True,
        end_of_iteration_hook=after_step,
    )
    try:
        trainer.train(num_epochs=1000)
    except TimeIsUpError:
        print(f"  its trainer made {steps} steps of {BATCH_SIZE} images in {seconds / 60:.1f} minutes")
    member.module.eval()
    member.head.eval()
    member.origin.update(trained="fine-tuned", head="pytorch-metric-learning")
    member.changed()
    return Encoder([member])
