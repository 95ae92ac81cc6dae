"""torchvision's tables and outputs, and its names for our variables."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np

from tests.golden.seeded_tensors import seeded_tensor

FOLDER = Path(__file__).parent.parent / "golden"


@cache
def names() -> dict:
  return json.loads((FOLDER / "resnet_names.json").read_text())


@cache
def outputs() -> dict[str, np.ndarray]:
  with np.load(FOLDER / "retinanet.npz") as file:
    return dict(file)


def is_backbone_weight(name: str) -> bool:
  return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def detector_tensors(body: str, model: str) -> dict[str, np.ndarray]:
  """Seeded weights of one of torchvision's RetinaNets, with the names that our module names give."""
  shapes = {f"backbone.body.{n}": s for n, s in names()[body]["tensors"].items() if is_backbone_weight(n)}
  shapes |= names()[model]
  tensors = {}
  for name, shape in shapes.items():
    ours = re.sub(r"^backbone\.body\.", "backbone.", name)
    ours = re.sub(
      r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0", lambda m: f"fpn.{m[1]}.{int(m[2]) + 3}", ours
    )
    ours = re.sub(r"^backbone\.fpn\.extra_blocks", "fpn", ours)
    ours = re.sub(r"^head\.(\w+_head)\.conv\.(\d)\.0", r"\1.conv.\2", ours)
    ours = re.sub(r"^head\.(\w+_head)\.(cls_logits|bbox_reg)", r"\1.output", ours)
    tensors[ours] = seeded_tensor(name, tuple(shape))
  return tensors
