"""What one writes without Lookalike: embed a folder with timm and a DataLoader; benchmarks/commands.py times it.

python benchmarks/plain_embedding.py FOLDER TIMM_NAME WEIGHTS.safetensors OUT.npy
"""

import os
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

folder, name, weights, out = sys.argv[1:]
model = timm.create_model(name, num_classes=0)
model.load_state_dict(load_file(weights))
model.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)


class Images(torch.utils.data.Dataset):
    """The images in the folder."""

    def __init__(self) -> None:
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return transform(Image.open(self.paths[number]).convert("RGB"))


loader = torch.utils.data.DataLoader(Images(), batch_size=32, num_workers=len(os.sched_getaffinity(0)))
with torch.inference_mode():
    embeddings = torch.nn.functional.normalize(torch.cat([model(batch) for batch in loader]))
np.save(out, embeddings.numpy())
