"""Writes what torchvision's RetinaNets compute (retinanet.npz) and their tensors' names (resnet_names.json).

Weights are drawn from their names (seeded_tensors.py), so only outputs are stored. Run with a Python that
has torch and torchvision (iou_det is not needed):

    python tests/golden/make_retinanet_golden.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from seeded_tensors import seeded_images, seeded_tensor
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

CHANNELS, CLASSES, ANCHORS = 32, 5, 9
# The second has levels of odd sizes (9x13, 5x7, 3x4, 2x2, 1x1). LastLevelP6P7 takes P5 if its input
# channels equal its output channels, else C5.
MODELS = {
  "c5": dict(body="resnet18", size=(96, 128), every=4, channels=[128, 256, 512], p6_channels=512),
  "p5": dict(body="resnet50", size=(72, 104), every=32, channels=[512, 1024, 2048], p6_channels=CHANNELS),
}


def run(body, size, every, channels, p6_channels):
  """Names with shapes, and outputs, of a RetinaNet; of C3 to C5 only one channel in `every`."""
  layers = {f"layer{stage}": str(stage + 1) for stage in (2, 3, 4)}
  body = torchvision.models.get_model(body, weights=None)
  extra = LastLevelP6P7(p6_channels, CHANNELS)
  backbone = BackboneWithFPN(body, layers, channels, CHANNELS, extra)
  model = torch.nn.ModuleDict({"backbone": backbone, "head": RetinaNetHead(CHANNELS, ANCHORS, CLASSES)})
  state = {n: torch.from_numpy(seeded_tensor(n, tuple(t.shape))) for n, t in model.state_dict().items()}
  model.load_state_dict(state)
  model.eval()

  images = torch.from_numpy(seeded_images(*size)).permute(0, 3, 1, 2)
  with torch.inference_mode():
    maps = backbone.body(images)
    pyramid = backbone(images)
    head = model["head"](list(pyramid.values()))
  out = {f"c{level}": x[:, ::every] for level, x in maps.items()}
  out |= {f"p{level}": x for level, x in enumerate(pyramid.values(), start=3)}
  out = {name: x.permute(0, 2, 3, 1).numpy() for name, x in out.items()}
  out |= {"logits": head["cls_logits"].numpy(), "deltas": head["bbox_regression"].numpy()}
  return names(model), out


def names(model):
  return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def main():
  folder, table, outputs = Path(__file__).parent, {}, {}
  for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
    model = torchvision.models.get_model(name, weights=None)
    table[name] = {"parameters": sum(p.numel() for p in model.parameters()), "tensors": names(model)}
  for name, settings in MODELS.items():
    tensors, out = run(**settings)
    body = {f"backbone.body.{n}": s for n, s in table[settings["body"]]["tensors"].items() if n[:3] != "fc."}
    assert body.items() <= tensors.items()
    table[name] = {n: s for n, s in tensors.items() if n not in body}  # FPN and heads; the body is above
    outputs |= {f"{name}_{key}": x for key, x in out.items()}
    print(name, {key: (x.shape, round(float(np.abs(x).max()), 2)) for key, x in out.items()})
  model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
  table["retinanet_resnet50_fpn"] = sum(p.numel() for p in model.parameters())

  versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
  np.savez_compressed(folder / "retinanet.npz", versions=versions, **outputs)
  (folder / "resnet_names.json").write_text(
    json.dumps({"versions": versions, **table}, separators=(",", ":"))
  )
  for file in ("retinanet.npz", "resnet_names.json"):
    print(f"{file}: {(folder / file).stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
  main()
