"""The network. A backbone is a module of this folder with a Flax class, made of (config.model, dtype, forms).

It returns C2 to C5 (strides 4, 8, 16 and 32) and stops the gradient behind frozen stages (`stop_frozen`).
`stage_of(name)` says of which stage a submodule is, 0 for the stem; `torch_name(path)` what a variable is
called in foreign weights.
"""

import importlib
from typing import Any

BACKBONES = {"resnet": "ResNet"}  # module -> class; the names of config.model.backbone


def backbone_class(name: str) -> Any:
  return getattr(importlib.import_module(f"iou_det.models.{name}"), BACKBONES[name])
