"""Our foreign detectors beside what their own code computed (tests/golden/make_detectors_golden.py).

Printing the largest differences of a file of that script, of any size, in a table:

    python -m tests.weights.detectors FILE DATA
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from iou_det.data.pipeline import Stack, picture_row
from iou_det.network import make_model, network_inputs
from iou_det.ops.anchors import by_anchor
from iou_det.training.losses import detection_losses, loss_terms, make_targets
from iou_det.weights.files import TensorFile
from iou_det.weights.foreign import convert
from iou_det.weights.saved import Saved
from tests.detecting import detect
from tests.golden.seeded_tensors import detector_tensor, seeded_picture

GOLDEN = Path(__file__).parent.parent / "golden" / "detectors.npz"
MADE = [(387, 500), (240, 500), (335, 401)]
OUTPUTS = {
  "torchvision": "head.classification_head.cls_logits",
  "torchvision_v2": "head.classification_head.cls_logits",
  "mmdetection": "bbox_head.retina_cls",
  "detectron2": "head.cls_score",
}


@cache
def golden(path: Path = GOLDEN) -> dict[str, np.ndarray]:
  with np.load(path) as file:
    return dict(file)


def tensors(key: str, path: Path = GOLDEN) -> dict[str, np.ndarray]:
  """The foreign detector's state dict."""
  state = {}
  for name, shape in json.loads(str(golden(path)[f"{key}/names"])).items():
    state[name] = detector_tensor(key, name, tuple(shape))
  state[f"{OUTPUTS[key]}.bias"] = golden(path)[f"{key}/bias"]
  if key == "detectron2":
    state["pixel_mean"] = np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1)
    state["pixel_std"] = np.ones((3, 1, 1), np.float32)
  return state


def pictures(which: str, data: Path | None = None, path: Path = GOLDEN) -> list[np.ndarray]:
  if which == "made":
    return [seeded_picture(*size) for size in MADE]
  folder = Path(str(data)) / "coco_mini" / "val2017"
  return [cv2.imread(str(folder / name))[..., ::-1] for name in golden(path)["real_names"]]


class Differences(NamedTuple):
  """The largest ones; boxes of matched detections in pixels of the original image."""

  logits: float
  deltas: float
  anchors: float
  losses: float  # relative
  scores: float
  boxes: float
  unmatched: int  # detections that one side alone has
  detections: int  # theirs


def compare(saved: Saved, key: str, which: str, images: list[np.ndarray], path: Path = GOLDEN) -> Differences:
  """Runs a converted detector on the images of the golden file."""
  store = golden(path)
  theirs = {n.split("/")[2]: x for n, x in store.items() if n.startswith(f"{key}/{which}/")}
  config = saved.config
  config.data.short, config.data.long = map(int, store["size"])
  config.data.canvas = (max(i.shape[0] for i in images), max(i.shape[1] for i in images))
  rows = []
  for i, image in enumerate(images):
    row = picture_row(image, config.data.canvas, False)
    rows.append(row | {"boxes": theirs[f"target_boxes_{i}"]})
    rows[-1] |= {"labels": theirs[f"target_labels_{i}"].astype(np.int32), "valid": np.ones(5, bool)}
  model, evaluation = make_model(config, len(saved.categories)), config.eval

  @jax.jit
  def run(variables, batch):
    inputs, anchors, level_sizes = network_inputs(config, batch, False, None, train=False)
    logits, deltas = model.apply(variables, inputs.images)
    targets = make_targets(config, inputs, anchors, level_sizes, False)
    losses = detection_losses(loss_terms(logits, deltas, targets, config), config.loss)
    logits, deltas = by_anchor(logits, len(saved.categories)), by_anchor(deltas, 4)
    found = detect(
      logits,
      deltas,
      anchors,
      inputs.image_size,
      inputs.scale,
      level_sizes=level_sizes,
      convention=config.anchors.convention,
      score_threshold=evaluation.score_threshold,
      candidates_per_level=evaluation.candidates_per_level,
      nms_iou=evaluation.nms_iou,
      max_detections=evaluation.max_detections,
    )
    return logits, deltas, anchors, np_stack(losses), found

  np_stack = lambda losses: jax.numpy.stack([losses.classification, losses.localization])
  logits, deltas, anchors, losses, found = jax.device_get(
    run(saved.variables, Stack(config.data.canvas)(rows))
  )
  classes = logits.shape[-1]
  if key == "detectron2":  # its anchors of a cell: octave, ratio; ours: ratio, octave
    logits, deltas, anchors = (octave_first(x) for x in (logits, deltas, anchors[None]))
  largest = {}
  for name, ours in (("logits", logits), ("deltas", deltas), ("anchors", anchors)):
    largest[name] = float(np.abs(ours.reshape(-1)[theirs[f"{name}_at"]] - theirs[name]).max())
  largest["losses"] = float(np.abs(losses / theirs["losses"] - 1).max())
  scores = boxes = 0.0
  unmatched = total = 0
  for i in range(len(images)):
    k = found.valid[i]
    ours_i = (found.boxes[i][k], found.scores[i][k], found.labels[i][k])
    theirs_i = tuple(theirs[f"{n}_{i}"] for n in ("boxes", "scores", "labels"))
    pair = matched(ours_i, theirs_i)
    a, b = np.array(pair).T
    scores = max(scores, float(np.abs(ours_i[1][a] - theirs_i[1][b]).max()))
    boxes = max(boxes, float(np.abs(ours_i[0][a] - theirs_i[0][b]).max()))
    unmatched += len(ours_i[0]) + len(theirs_i[0]) - 2 * len(pair)
    total += len(theirs_i[0])
  assert classes == len(saved.categories)
  return Differences(**largest, scores=scores, boxes=boxes, unmatched=unmatched, detections=total)


def octave_first(x: np.ndarray) -> np.ndarray:
  batch, anchors, values = x.shape
  return x.reshape(batch, anchors // 9, 3, 3, values).swapaxes(2, 3).reshape(x.shape)


def matched(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> list[tuple[int, int]]:
  """Pairs of detections of one label with all edges within a pixel, each used once."""
  pairs, free = [], set(range(len(theirs[0])))
  for i, (box, label) in enumerate(zip(ours[0], ours[2], strict=True)):
    near = [j for j in free if theirs[2][j] == label and np.abs(theirs[0][j] - box).max() < 1]
    if near:
      j = min(near, key=lambda j: abs(theirs[1][j] - ours[1][i]))
      free.remove(j)
      pairs.append((i, j))
  return pairs


def main(file: str, data: str) -> None:
  print(f"| format | images | {' | '.join(Differences._fields)} |")
  print("|---" * (2 + len(Differences._fields)) + "|")
  for key in OUTPUTS:
    for which in ("made", "real"):
      path = Path(file)
      if f"{key}/{which}/logits" not in golden(path):
        continue
      saved = convert(TensorFile(tensors(key, path), {}), key)
      row = compare(saved, key, which, pictures(which, Path(data), path), path)
      print(f"| {key} | {which} | {' | '.join(f'{x:.2g}' if x < 100 else str(x) for x in row)} |", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
