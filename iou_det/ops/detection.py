"""From the network's output to detections in pixels of the original image, inside jit."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iou_det.ops.anchors import CONVENTIONS
from iou_det.ops.boxes import clip, decode, mirrored
from iou_det.ops.nms import Kept, soft_nms
from iou_det.ops.nms import nms as hard_nms
from iou_det.ops.top_k import top_k

NMS = ("hard", "linear", "gaussian", "none")


class Detections(NamedTuple):
  """By falling score, boxes in pixels of the original image; rows that are not `valid` are zeros."""

  boxes: Float[Array, "batch max 4"]
  scores: Float[Array, "batch max"]
  labels: Int[Array, "batch max"]
  valid: Bool[Array, "batch max"]


class Candidates(NamedTuple):
  """What enters NMS: boxes in pixels of the original image and the score of every class."""

  boxes: Float[Array, "batch n 4"]
  scores: Float[Array, "batch n classes"]


def find_candidates(
  logits: Sequence[Float[Array, "batch _ _ _"]],
  deltas: Sequence[Float[Array, "batch _ _ _"]],
  anchors: Float[Array, "anchors 4"],
  image_size: Int[Array, "batch 2"],
  scale: Float[Array, "batch 2"],
  ious: Sequence[Float[Array, "batch _ _ _"]] | None = None,
  *,
  inside: Bool[Array, "batch anchors"] | None = None,
  convention: str,
  candidates_per_level: int = 1000,
  mirror: bool = False,
) -> Candidates:
  """Of each pyramid level the `candidates_per_level` anchors with the highest best-class score, decoded,
  clipped to the image and mapped to original pixels.

  Args:
    logits, deltas, ious: of each level, as `RetinaNet` returns them; no array of all of them is made. With
      an IoU branch a score is p^0.5 iou^0.5 (arXiv:1912.05992, alpha 0.5), for the choice of anchors too.
    anchors: in network pixels, level by level.
    image_size: height and width of the image's content in network pixels (without padding).
    scale: network pixels per original pixel, y and x.
    inside: False for anchors that take no part: they come after all others, their scores are 0; None: all do.
    convention: of the boxes, see `unscale_boxes`; "legacy" also clips as inclusive boxes were clipped.
    mirror: the network saw the content flipped from left to right; the boxes are flipped back, in network
      pixels, where the flip was made.
  """
  sizes = tuple(math.prod(level.shape[1:]) // 4 for level in deltas)
  if sum(sizes) != len(anchors):
    raise ValueError(f"levels of {sizes} are {sum(sizes)} anchors, not {len(anchors)}")

  def best(
    anchors: Float[Array, "n 4"],
    inside: Bool[Array, " n"] | None,
    logits: Float[Array, "_ _ _"],
    deltas: Float[Array, "_ _ _"],
    iou: Float[Array, "_ _ _"] | None = None,
  ) -> tuple[Float[Array, "k _"], ...]:
    logits, deltas = logits.reshape(len(anchors), -1), deltas.reshape(-1, 4)
    highest = jnp.max(logits, axis=-1)  # of the logits: the sigmoid is monotonic and saturates
    if iou is not None:
      highest = score(highest, iou := iou.reshape(-1))
    if inside is not None:
      highest = jnp.where(inside, highest, -jnp.inf)
    values, chosen = top_k(highest, min(candidates_per_level, len(anchors)))
    logits = logits[chosen]
    if inside is not None:
      logits = jnp.where(values[:, None] == -jnp.inf, -jnp.inf, logits)
    rows = anchors[chosen], logits, deltas[chosen]
    return rows if iou is None else (*rows, iou[chosen, None])

  def one_image(outputs, inside, image_size, scale):
    ends = list(itertools.accumulate(sizes))
    of_levels = [anchors[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    masks = [None] * len(sizes) if inside is None else jnp.split(inside, ends[:-1])
    levels = [best(*level) for level in zip(of_levels, masks, *outputs, strict=True)]
    parts = (jnp.concatenate(part).astype(jnp.float32) for part in zip(*levels, strict=True))
    chosen_anchors, chosen_logits, chosen_deltas, *iou = parts
    boxes = _clip_to_image(decode(chosen_deltas, chosen_anchors), image_size, convention)
    if mirror:
      boxes = mirrored(boxes, image_size[1])
    boxes = unscale_boxes(boxes, scale, convention=convention)
    return Candidates(boxes, score(chosen_logits, *iou))

  outputs = [list(output) for output in (logits, deltas, ious) if output is not None]
  return jax.vmap(one_image)(outputs, inside, image_size, scale)


def score(
  logits: Float[Array, "*shape"], iou: Float[Array, "*#shape"] | None = None
) -> Float[Array, "*shape"]:
  """Of logits of classes and, where there is an IoU branch, of the IoU; float32."""
  p = jax.nn.sigmoid(logits.astype(jnp.float32))
  return p if iou is None else jnp.sqrt(p * jax.nn.sigmoid(iou.astype(jnp.float32)))


def suppress(
  views: Sequence[Candidates],
  *,
  score_threshold: float = 0.05,
  nms_iou: float = 0.5,
  max_detections: int = 100,
  nms: str = "hard",
  class_agnostic: bool = False,
  nms_block: int | None = None,
) -> Detections:
  """Every class of every candidate of all views with a score above `score_threshold` enters one NMS; the best
  `max_detections` over all classes remain.

  Args:
    views: of the same images. At equal scores the earlier view comes first.
    nms: "hard", soft-NMS "linear" or "gaussian" (sigma 0.5), or "none": the best `max_detections` pairs of
      box and class that would enter NMS, nothing suppressed.
    class_agnostic: only the best class of each box enters (the first, if some share its score), and boxes
      suppress each other whatever their classes.
    nms_block: of "hard", see `iou_det.ops.nms.nms`; changes no result.
  """
  if nms not in NMS:
    raise ValueError(f"NMS {nms!r} is not known; use {', '.join(map(repr, NMS[:-1]))} or {NMS[-1]!r}")
  limits: dict[str, Any] = {"score_threshold": score_threshold, "max_detections": max_detections}

  def one_image(boxes, scores):
    if class_agnostic:
      scores = jnp.where(scores > score_threshold, scores, -jnp.inf)  # so a NaN hides no other class
      best, scores = jnp.argmax(scores, axis=-1), jnp.max(scores, axis=-1, keepdims=True)
    if nms == "hard":
      kept = hard_nms(boxes, scores, iou_threshold=nms_iou, block=nms_block, **limits)
    elif nms == "none":
      kept = _best_pairs(scores, **limits)
    else:
      kept = soft_nms(boxes, scores, method=nms, iou_threshold=nms_iou, **limits)
    if class_agnostic:
      kept = kept._replace(label=jnp.where(kept.valid, best[kept.box], 0))
    boxes = jnp.where(kept.valid[:, None], boxes[kept.box], 0.0)
    return Detections(boxes, kept.score, kept.label, kept.valid)

  return jax.vmap(one_image)(*(jnp.concatenate(parts, axis=1) for parts in zip(*views, strict=True)))


def _best_pairs(scores: Float[Array, "n classes"], score_threshold: float, max_detections: int) -> Kept:
  """The best (box, class) pairs above the threshold; equal scores in the order of NMS: box, then class."""
  classes = scores.shape[1]
  flat = jnp.where(scores > score_threshold, scores, -jnp.inf).reshape(-1)
  score, pair = top_k(flat, min(max_detections, flat.size))
  missing = max_detections - len(pair)  # the output has `max_detections` rows, however few pairs there are
  score = jnp.pad(score, (0, missing), constant_values=-jnp.inf)
  valid = score > -jnp.inf
  pair = jnp.where(valid, jnp.pad(pair, (0, missing)), 0)
  return Kept(pair // classes, pair % classes, jnp.where(valid, score, 0.0), valid)


def unscale_boxes(
  boxes: Float[Array, "*batch n 4"], scale: Float[Array, "*batch 2"], *, convention: str
) -> Float[Array, "*batch n 4"]:
  """Maps boxes from network to original pixels; `scale`: network pixels per original pixel, y and x.

  "legacy" scaled inclusive corners (x2 - 1 here), so x2 = (x2 - 1) / s + 1; the others scale every edge.
  """
  factors = jnp.concatenate([scale[..., ::-1]] * 2, axis=-1)[..., None, :]
  inclusive = _inclusive(convention)
  return (boxes - inclusive) / factors + inclusive


def _clip_to_image(
  boxes: Float[Array, "n 4"], image_size: Int[Array, " 2"], convention: str
) -> Float[Array, "n 4"]:
  """Clips to the image; "legacy" kept both inclusive corners in 0..size-1, so no box is under 1 pixel."""
  inclusive = _inclusive(convention)
  return clip(boxes - inclusive, image_size - (convention == "legacy")) + inclusive


def _inclusive(convention: str) -> Float[Array, " 4"]:
  """What turns an inclusive box into x1, y1, x2, y2 with exclusive ends."""
  if convention not in CONVENTIONS:
    raise ValueError(f"box convention {convention!r} is not known; use one of {', '.join(CONVENTIONS)}")
  return jnp.array([0.0, 0.0, 1.0, 1.0]) * (convention == "legacy")
