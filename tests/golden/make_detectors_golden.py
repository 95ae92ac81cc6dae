"""Writes what the RetinaNets of torchvision, mmdetection and detectron2 compute (detectors.npz).

torchvision's are its own classes; the other two are stated again here from their published definitions.
Weights are drawn from their names (seeded_tensors.py) but for the biases of the class output, which are
chosen so that a few hundred scores pass the threshold. Stored are the names of the tensors and samples of the
outputs. Images are padded as iou_det pads them. Run with a Python that has torch, torchvision and OpenCV
(iou_det is not needed):

    python tests/golden/make_detectors_golden.py DATA [--size 160,256] [--out FILE] [--sets real] [--padding]

DATA has coco_mini/ (a COCO folder); of its images only the names are stored. --padding prints instead how
much torchvision's logits depend on whether an image is padded to a multiple of 32, as there, or to the whole
canvas, as here.
"""

import argparse
import json
import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from restated_detectors import STD, STRIDES, Detectron2, MMDetection, Restated, pad, sizes_of
from seeded_tensors import detector_tensor, seeded_picture
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.transform import _resize_image_and_masks
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

MADE = [
  (387, 500),
  (240, 500),
  (335, 401),
]  # sizes of drawn pictures, landscape; some are floored a pixel lower
REAL = 3  # landscape images of coco_mini/val2017
SAMPLES = 400
PASSING = 300  # scores of an image


# --- torchvision: its own classes ---


def torchvision_v1():
  """retinanet_resnet50_fpn as its builder makes it around the published file."""
  body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
  extra = LastLevelP6P7(256, 256)
  model = RetinaNet(_resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=extra), 91)
  overwrite_eps(model, 0.0)
  return model


def torchvision_v2():
  return torchvision.models.detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)


class Torchvision:
  """Runs one of torchvision's on a batch; `canvas` None: padded as torchvision pads."""

  def __init__(self, model, size, canvas):
    self.model, self.captured = model, {}
    model.transform.min_size, model.transform.max_size = (size[0],), size[1]
    if canvas:
      model.transform.batch_images = lambda images, size_divisible=32: pad(images, canvas)
    model.head.register_forward_pre_hook(lambda module, inputs: setattr(self, "sizes", sizes_of(inputs[0])))
    model.head.register_forward_hook(lambda module, inputs, out: self.captured.update(out))
    model.anchor_generator.register_forward_hook(
      lambda module, inputs, out: self.captured.update(anchors=out[0], all_anchors=out)
    )

  def __call__(self, pictures, targets):
    images = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures]
    self.model.eval()
    with torch.inference_mode():
      found = self.model(images)
      scaled = self.model.transform(images, targets)[1]
      losses = self.model.compute_loss(scaled, self.captured, self.captured["all_anchors"])
    out = {"logits": self.captured["cls_logits"], "deltas": self.captured["bbox_regression"]}
    out |= {"anchors": self.captured["anchors"]}
    out["losses"] = torch.stack([losses["classification"], losses["bbox_regression"]])
    return out, [(d["boxes"], d["scores"], d["labels"]) for d in found]


# --- what is run ---

OUTPUT = {"torchvision": "head.classification_head.cls_logits", "mmdetection": "bbox_head.retina_cls"}
OUTPUT |= {"torchvision_v2": OUTPUT["torchvision"], "detectron2": "head.cls_score"}


def make(key, size, canvas):
  """A detector with seeded weights."""
  build = {"torchvision": torchvision_v1, "torchvision_v2": torchvision_v2}
  build |= {"mmdetection": lambda: MMDetection(80), "detectron2": lambda: Detectron2(80)}
  model = build[key]()
  names = {n: list(t.shape) for n, t in model.state_dict().items()}
  pixels = {n: t for n, t in model.state_dict().items() if n.startswith("pixel_")}
  state = {n: torch.from_numpy(detector_tensor(key, n, tuple(s))) for n, s in names.items()}
  model.load_state_dict(state | pixels)
  if key.startswith("torchvision"):
    return model, Torchvision(model, size, canvas), names
  options = {
    "mmdetection": dict(bgr=False, std=STD, forced_target="box"),
    "detectron2": dict(bgr=True, std=torch.ones(3), forced_target="best"),
  }
  return model, Restated(model, size, canvas, **options[key]), names


def calibrate(key, model, run, pictures):
  """Sets class biases with which some hundred scores of an image pass the threshold, of every output alike.

  iou_det takes the best 1000 anchors of a level, the others the best 1000 pairs of anchor and class: the same
  where no more pass.
  """
  bias = model.state_dict()[f"{OUTPUT[key]}.bias"]
  bias.zero_()
  logits = run(pictures, seeded_targets(pictures, len(bias) // 9))[0]["logits"]
  cells = logits.view(-1, len(bias))
  passing = len(pictures) * PASSING // len(bias) + 1
  bias.copy_(-2.95 - cells.kthvalue(len(cells) - passing, dim=0)[0])
  return bias.numpy().copy()


def made_pictures():
  return [seeded_picture(*size) for size in MADE]


def real_pictures(data):
  names = sorted(p.name for p in (Path(data) / "coco_mini" / "val2017").glob("*.jpg"))
  found = []
  for name in names:
    picture = cv2.imread(str(Path(data) / "coco_mini" / "val2017" / name))[..., ::-1].copy()
    if picture.shape[1] > picture.shape[0] and len(found) < REAL:
      found.append((name, picture))
  return [n for n, _ in found], [p for _, p in found]


def seeded_targets(pictures, classes):
  rng = np.random.default_rng(0)
  targets = []
  for picture in pictures:
    h, w = picture.shape[:2]
    x1, y1 = rng.uniform(0, 0.5, 5) * w, rng.uniform(0, 0.5, 5) * h
    boxes = np.stack([x1, y1, x1 + rng.uniform(0.1, 0.5, 5) * w, y1 + rng.uniform(0.1, 0.5, 5) * h], axis=1)
    boxes[0] = [5, 5, 16, 14]  # overlaps no anchor by a half
    labels = torch.from_numpy(rng.integers(1, classes, 5))
    targets.append({"boxes": torch.from_numpy(boxes.astype(np.float32)), "labels": labels})
  return targets


def samples(out, rng):
  """Values at random places of each output, and the places."""
  kept = {"losses": out["losses"].numpy()}
  for name in ("logits", "deltas", "anchors"):
    flat = out[name].numpy().reshape(-1)
    kept[f"{name}_at"] = rng.integers(0, flat.size, SAMPLES).astype(np.int32)
    kept[name] = flat[kept[f"{name}_at"]]
  return kept


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("data")
  parser.add_argument("--size", default="160,256", type=lambda text: tuple(map(int, text.split(","))))
  parser.add_argument("--sets", default="made,real", type=lambda text: text.split(","))
  parser.add_argument("--out", default=Path(__file__).parent / "detectors.npz", type=Path)
  parser.add_argument("--padding", action="store_true")
  arguments = parser.parse_args()
  size = arguments.size
  canvas = tuple(-(-side // 32) * 32 for side in size)
  real_names, real = real_pictures(arguments.data)
  sets = {name: {"made": made_pictures(), "real": real}[name] for name in arguments.sets}
  stored = {"sizes": floored_sizes()} if "made" in sets else {}
  stored |= {"size": np.array(size), "real_names": np.array(real_names)}
  stored["versions"] = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
  for key in OUTPUT:
    model, run, names = make(key, size, canvas)
    classes = names[f"{OUTPUT[key]}.bias"][0] // 9
    if arguments.padding and not key.startswith("torchvision"):
      continue
    every = [picture for pictures in sets.values() for picture in pictures]
    if arguments.padding:
      compare_padding(key, run, make(key, size, None)[1], every)
      continue
    bias = calibrate(key, model, run, every)
    stored |= {f"{key}/names": json.dumps(names), f"{key}/bias": bias}
    for which, pictures in sets.items():
      targets = seeded_targets(pictures, classes)
      out, found = run(pictures, targets)
      row = samples(out, np.random.default_rng(1))
      for i, (target, detections) in enumerate(zip(targets, found, strict=True)):
        row |= {f"target_{name}_{i}": value.numpy() for name, value in target.items()}
        row |= {f"{n}_{i}": v.numpy() for n, v in zip(("boxes", "scores", "labels"), detections, strict=True)}
      stored |= {f"{key}/{which}/{name}": value for name, value in row.items()}
      passing = [int((x > -2.944).sum()) for x in out["logits"].split(level_sizes(canvas), dim=1)]
      print(key, which, "detections", [len(d[1]) for d in found], "passing a level", passing)
      print("  scores", [[round(float(s), 3) for s in d[1][[0, -1]]] for d in found], out["losses"].tolist())
      print("  logits", out["logits"].std().item(), "deltas", out["deltas"].abs().max().item())
  if arguments.padding:
    return
  np.savez_compressed(arguments.out, **stored)
  print(f"{arguments.out}: {arguments.out.stat().st_size / 1024:.0f} KB")


def compare_padding(key, run, native, pictures):
  """How far the logits of P3 lie apart, padded to the canvas and to the image's own multiple of 32."""
  for picture in pictures:
    targets, maps = seeded_targets([picture], 2), []
    for call in (run, native):
      call([picture], targets)
      rows, columns = call.sizes[0]
      maps.append(call.captured["cls_logits"][0, : rows * columns * 9].view(rows, columns, -1).clone())
    (rows, columns), common = maps[1].shape[:2], min(m.shape[1] for m in maps)
    a, b = maps[0][:rows, :common], maps[1][:rows, :common]
    apart, half = (a - b).abs(), common // 2
    spread = b.flatten(0, 1).std(0).mean()
    print(
      f"{key}: {columns} of {maps[0].shape[1]} columns; spread of a logit {spread:.2g}; mean difference in "
      f"the left half {apart[:, :half].mean():.2g} (largest {apart[:, :half].max():.2g}), in the right half "
      f"{apart[:, half:].mean():.2g}",
      flush=True,
    )


def floored_sizes():
  """Rows of height, width, then both after torchvision's resizing to 800, 1333, and to 160, 256."""
  rng, rows = np.random.default_rng(2), []
  for height, width in [*rng.integers(1, 700, (300, 2)), (387, 387), (387, 500), (640, 480), (480, 640)]:
    row = [height, width]
    for short, long in ((800, 1333), (160, 256)):
      row += _resize_image_and_masks(torch.zeros(1, int(height), int(width)), short, long)[0].shape[1:]
    rows.append(row)
  return np.array(rows, np.int16)


def level_sizes(canvas):
  return [math.ceil(canvas[0] / s) * math.ceil(canvas[1] / s) * 9 for s in STRIDES]


if __name__ == "__main__":
  main()
