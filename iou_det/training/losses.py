"""The detector's loss: match anchors, weigh each positive by the IoU of its predicted box, add up."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped
from ml_collections import ConfigDict

from iou_det.data.preprocess import Inputs
from iou_det.forms import ANY, Forms
from iou_det.network import anchors_inside
from iou_det.ops import anchors as anchor_ops
from iou_det.ops import boxes as box_ops
from iou_det.ops import losses, matching
from iou_det.ops.other_losses import (
  CLASSIFICATION,
  LOCALIZATION,
  BoxPairs,
  concordance_loss,
  cross_entropy,
  isr_weights,
)


class Targets(NamedTuple):
  """What a batch's predictions are compared with; boxes and anchors are x1, y1, x2, y2 in network pixels."""

  anchors: Float[Array, "anchors 4"]
  level_sizes: tuple[int, ...]  # anchors of each pyramid level
  boxes: Float[Array, "batch boxes 4"]
  labels: Int[Array, "batch boxes"]
  valid: Bool[Array, "batch boxes"]  # the other rows are padding
  inside: Bool[Array, "batch anchors"]  # anchors that take part; the others match nothing and cost nothing


def make_targets(
  config: ConfigDict,
  inputs: Inputs,
  anchors: Float[Array, "anchors 4"],
  level_sizes: tuple[int, ...],
  portrait: bool,
) -> Targets:
  inside = anchors_inside(config, inputs.image_size, portrait)
  if inside is None:
    inside = jnp.ones((inputs.boxes.shape[0], anchors.shape[0]), bool)
  return Targets(anchors, level_sizes, inputs.boxes, inputs.labels, inputs.valid, inside)


class Terms(NamedTuple):
  """The loss before it is added up. Weights carry no gradient."""

  iou: Float[Array, "batch anchors"]  # of each decoded box with its ground truth; no meaning without one
  positive: Bool[Array, "batch anchors"]
  counted: Bool[Array, "batch anchors"]  # positives and negatives: what has a classification loss
  own_loss: Float[Array, "batch anchors"]  # classification loss of a positive's own class; else 0
  other_loss: Float[Array, " batch"]  # of all other classes of what is counted together, which weigh 1
  own_weights: Float[Array, "batch anchors"]
  box_loss: Float[Array, "batch anchors"]
  box_weights: Float[Array, "batch anchors"]
  smooth_l1: Float[Array, "batch anchors"]  # what the baseline's box loss would be
  iou_loss: Float[Array, "batch anchors"]  # of the IoU branch; 0 without one
  # Of each of loss.group's groups, or of the batch:
  concordance: Float[Array, "*groups"]  # with its factor; 0 without one
  normalizer: Float[Array, "*groups levels"]  # of Eq. (2): of each pyramid level where the config says so

  def classification(self, by_image: bool = False) -> Float[Array, "..."]:
    """The sum over the batch, or those of its images."""
    own = jnp.sum(self.own_weights * self.own_loss, axis=1, where=self.counted)
    loss = own + self.other_loss
    return loss if by_image else loss.sum()

  def localization(self, by_image: bool = False) -> Float[Array, "..."]:
    return self.of_positives(self.box_weights * self.box_loss, by_image)

  def of_positives(self, loss: Float[Array, "batch anchors"], by_image: bool = False) -> Float[Array, "..."]:
    return jnp.sum(loss, 1 if by_image else None, where=self.positive)


def loss_terms(
  logits: list[Float[Array, "batch _ _ _"]],
  deltas: list[Float[Array, "batch _ _ _"]],
  targets: Targets,
  config: ConfigDict,
  forms: Forms = ANY,
  ious: list[Float[Array, "batch _ _ _"]] | None = None,
) -> Terms:
  """Losses and weights of every anchor, Eq. (1)-(5) of arXiv:1908.05641, by config.match and config.loss.

  Args:
    logits, deltas, ious: of each level, as `RetinaNet` returns them.
  """
  s, anchors = config.loss, targets.anchors
  offsets = anchor_ops.by_anchor(deltas, 4)
  match = lambda *of_image: matching.match(anchors, *of_image, **config.match)
  matched = jax.vmap(match)(targets.boxes, targets.valid, targets.inside)
  positive = matched.positive
  # Anchors that are not positive get themselves as target: offsets 0, no log(0), no NaN gradient.
  target_boxes, labels = (pick_by_product if forms.products else pick)(targets, matched.index)
  target_boxes = jnp.where(positive[..., None], target_boxes, anchors)
  labels = jnp.where(positive, labels, -1)

  boxes = box_ops.decode(offsets, anchors)
  overlap = box_ops.iou(boxes, target_boxes)
  iou = jax.lax.stop_gradient(overlap)
  by_level = {"level_sizes": targets.level_sizes if s.normalizer == "level" else None}

  class_loss = lambda logits, target, iou: s.w_cls * CLASSIFICATION[s.classification](logits, target, iou, s)
  counted = targets.inside & ~matched.ignored
  sums = class_sums_by_products if forms.products else class_sums
  own_loss, other_loss = sums(logits, labels, counted, iou, class_loss)

  scores = iou  # not asked for
  if s.concordance:
    scores = sums(logits, labels, counted, iou, lambda logits, *_: jax.nn.sigmoid(logits))[0]

  def weigh(own_loss, scores, iou, labels, index, pairs: BoxPairs) -> tuple[tuple[Array, ...], Any]:
    """All that runs over several images: weights of both losses and box losses; concordance, normaliser."""
    positive = pairs.positive
    own_weights = losses.normalized_localization_weights(own_loss, iou, positive, lambd=s.eta, **by_level)
    if s.isr_gamma:
      own_weights *= isr_weights(own_loss, iou, labels, index, gamma=s.isr_gamma)
    normalizer = losses.normalizer(own_loss, iou, positive, exponent=s.eta, **by_level)
    box_loss, smooth_l1 = (LOCALIZATION[name](pairs, s) for name in (s.localization, "smooth_l1"))
    if s.loc_weights == "eq5":
      box_weights = s.w_loc * losses.normalized_localization_weights(
        box_loss, iou, positive, lambd=s.lambd, **by_level
      )
    else:
      box_weights = losses.iou_balanced_localization_weights(iou, lambd=s.lambd, w_loc=s.w_loc)
    concordance = jnp.zeros(())
    if s.concordance:
      concordance = s.concordance * concordance_loss(scores, iou, positive)
    return (own_weights, box_loss, box_weights, smooth_l1), (concordance, normalizer)

  pairs = BoxPairs(offsets, box_ops.encode(target_boxes, anchors), boxes, target_boxes, positive)
  weighted, of_groups = by_group(weigh, s.group)(own_loss, scores, iou, labels, matched.index, pairs)
  own_weights, box_loss, box_weights, smooth_l1 = weighted
  iou_loss = jnp.zeros_like(iou)
  if ious is not None:
    predicted = anchor_ops.by_anchor(ious, 1)[..., 0]
    iou_loss = cross_entropy(predicted, iou if s.iou_target == "detached" else overlap)
  of_anchors = own_loss, other_loss, own_weights, box_loss, box_weights, smooth_l1
  return Terms(iou, positive, counted, *of_anchors, iou_loss, *of_groups)


def by_group(
  function: Callable[..., tuple[PyTree, PyTree]], group: int
) -> Callable[..., tuple[PyTree, PyTree]]:
  """`function` of arrays of a batch, on each `group` images of it that follow one another; 0: on all at once.

  The batch's own order says which they are: neither the devices nor processes that it is split over nor the
  parts that it comes in (train.accumulate). A device that has whole groups exchanges nothing for them.

  Args:
    function: returns arrays of images, and arrays of the group, which get an axis for the groups.
  """
  if not group:
    return function

  def grouped(*arrays: PyTree) -> tuple[PyTree, PyTree]:
    split = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), arrays)
    of_images, of_groups = jax.vmap(function)(*split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_images), of_groups

  return grouped


Picked = tuple[Float[Array, "batch anchors 4"], Int[Array, "batch anchors"]]


def pick(targets: Targets, index: Int[Array, "batch anchors"]) -> Picked:
  """Box and label of each anchor's ground truth."""
  boxes = jnp.take_along_axis(targets.boxes, index[..., None], axis=1)
  return boxes, jnp.take_along_axis(targets.labels, index, axis=1)


def pick_by_product(targets: Targets, index: Int[Array, "batch anchors"]) -> Picked:
  """`pick` as a product with a matrix of 0 and 1; exact."""
  rows = jnp.concatenate([targets.boxes, targets.labels[..., None].astype(jnp.float32)], axis=2)
  # Three numbers of bfloat16 add up to one of float32 (labels are whole numbers below 2^24). By
  # `reduce_precision`: a compiler may leave out a conversion there and back.
  high = jax.lax.reduce_precision(rows, 8, 7)
  middle = jax.lax.reduce_precision(rows - high, 8, 7)
  parts = jnp.concatenate([high, middle, rows - high - middle], axis=2).astype(jnp.bfloat16)
  chosen = (index[:, None] == jnp.arange(rows.shape[1])[:, None]).astype(jnp.bfloat16)
  picked = jnp.einsum("bnk,bna->bka", parts, chosen, preferred_element_type=jnp.float32)
  high, middle, low = jnp.split(picked, 3, axis=1)
  picked = high + middle + low
  return picked[:, :4].swapaxes(1, 2), picked[:, 4].astype(jnp.int32)


ClassLoss = Callable[[Array, Array, Array], Float[Array, "..."]]
ClassSums = tuple[Float[Array, "batch anchors"], Float[Array, " batch"]]


def class_sums(
  levels: list[Float[Array, "batch _ _ _"]],
  labels: Int[Array, "batch anchors"],
  counted: Bool[Array, "batch anchors"],
  iou: Float[Array, "batch anchors"],
  loss: ClassLoss,
) -> ClassSums:
  """Classification loss of each positive's own class (0 elsewhere); that of all other classes of an image.

  Logits are read once forward and once backward, which computes all else from them again: nothing else of
  their number is kept or written. Each sum has its own `checkpoint`: what both share would be written.

  Args:
    labels: class of the positives, -1 elsewhere.
    counted: the anchors whose other classes count.
    loss: elementwise, of logits, whether their classes are the targets, and IoUs.
  """
  no, none = jnp.zeros((), bool), jnp.zeros(())
  own = lambda logits, labels: labels[..., None] == jnp.arange(logits.shape[-1])

  @jax.checkpoint
  def own_logit(logits, labels):
    return jnp.sum(logits.astype(jnp.float32), axis=-1, where=own(logits, labels))

  @jax.checkpoint
  def others(logits, labels):
    return jnp.sum(loss(logits.astype(jnp.float32), no, none), axis=-1, where=~own(logits, labels))

  split = by_level(levels, labels)
  parts = [(z.reshape(*part.shape, -1), part) for z, part in zip(levels, split, strict=True)]
  own_logits, other_loss = (
    jnp.concatenate([f(*part) for part in parts], axis=1) for f in (own_logit, others)
  )
  return own_losses(own_logits, labels, iou, loss), jnp.sum(other_loss, axis=1, where=counted)


def class_sums_by_products(
  levels: list[Float[Array, "batch _ _ _"]],
  labels: Int[Array, "batch anchors"],
  counted: Bool[Array, "batch anchors"],
  iou: Float[Array, "batch anchors"],
  loss: ClassLoss,
) -> ClassSums:
  """`class_sums` without ever giving the logits another shape.

  A cell's anchors and classes stay one axis of channels. What belongs to an anchor is spread over its
  classes, and theirs added up for it, by products with a matrix of 0 and 1: they are exact, since each adds
  up one value and zeros. What a channel is to its anchor is kept for the backward pass, as large as a logit:
  so its gradient can take the place in memory.
  """
  no, none = jnp.zeros((), bool), jnp.zeros(())
  other = lambda z: loss(z.astype(jnp.float32), no, none)
  classes = sum(z.size for z in levels) // labels.size
  small = jnp.bfloat16 if classes <= 256 else jnp.float32  # of which all labels are values
  exact = partial(jnp.einsum, precision="highest")

  def spread(x: Float[Array, "b h w a"]) -> Float[Array, "b h w c"]:
    return exact("bhwa,ca->bhwc", x, jnp.repeat(jnp.eye(x.shape[-1], dtype=x.dtype), classes, axis=0))

  def forward(z: Float[Array, "b h w c"], labels: Float[Array, "b h w a"]):
    channel = jnp.arange(z.shape[-1]) % classes
    spread_labels = spread(labels)
    role = jnp.where(spread_labels == channel, OWN, jnp.where(spread_labels == UNCOUNTED, UNCOUNTED, OTHER))
    role = jax.lax.optimization_barrier(role.astype(z.dtype))  # written once, not computed for each use
    own = jnp.where(role == OWN, z, jnp.zeros((), z.dtype))
    matrix = jnp.repeat(jnp.eye(labels.shape[-1], dtype=z.dtype), classes, axis=0)
    own = exact("bhwc,ca->bhwa", own, matrix, preferred_element_type=jnp.float32)
    return (own, jnp.sum(other(z), axis=(1, 2, 3), where=role == OTHER)), (z, role)

  def backward(kept, gradients):
    (z, role), (of_own, of_other) = kept, gradients
    # Without a barrier: the sum over cells that is the bias's gradient is of the same pass then.
    (slope,) = jax.vjp(other, z)[1](jnp.broadcast_to(of_other[:, None, None, None], z.shape))
    zero = jnp.zeros((), z.dtype)
    of_own = spread(of_own.astype(z.dtype))
    return jnp.where(role == OWN, of_own, jnp.where(role == OTHER, slope, zero)), None

  sums = jax.custom_vjp(lambda z, labels: forward(z, labels)[0])
  sums.defvjp(forward, backward)
  codes = jnp.where(counted, labels, UNCOUNTED).astype(small)
  found = [
    sums(z, code.reshape(*z.shape[:3], -1)) for z, code in zip(levels, by_level(levels, codes), strict=True)
  ]
  own_logits = jnp.concatenate([own.reshape(len(own), -1) for own, _ in found], axis=1)
  return own_losses(own_logits, labels, iou, loss), sum(of_others for _, of_others in found)


OTHER, OWN, UNCOUNTED = 0, 1, -2  # what a channel is to its anchor; the last is also no class, as -1


def by_level(
  levels: list[Float[Array, "batch _ _ _"]], values: Shaped[Array, "batch anchors"]
) -> list[Shaped[Array, "batch _"]]:
  """Values of anchors cut into those of each level of a network's outputs."""
  cells = np.array([z[0].size for z in levels])
  return jnp.split(values, np.cumsum(cells * values.shape[1] // cells.sum())[:-1], axis=1)


def own_losses(
  own_logits: Float[Array, "batch anchors"],
  labels: Int[Array, "batch anchors"],
  iou: Float[Array, "batch anchors"],
  loss: ClassLoss,
) -> Float[Array, "batch anchors"]:
  positive = labels >= 0
  losses = loss(own_logits, jnp.ones((), bool), jnp.where(positive, iou, 0.0))
  return jnp.where(positive, losses, 0.0)


class Losses(NamedTuple):
  classification: Float[Array, ""]
  localization: Float[Array, ""]
  positives: Float[Array, ""]  # per image
  positive_iou: Float[Array, ""]  # mean IoU of the positives' decoded boxes
  other: Float[Array, ""]  # the IoU branch's and concordance; 0 without them
  loc_weight: Float[Array, ""]  # effective weight: localization loss over smooth L1 with weights of 1
  normalizer: Float[Array, ""]  # what both sums were divided by

  @property
  def total(self) -> Float[Array, ""]:
    return self.classification + self.localization + self.other


def detection_losses(terms: Terms, loss: ConfigDict, real: Bool[Array, " batch"] | None = None) -> Losses:
  """RetinaNet's two losses.

  Args:
    loss: the config's section. average="batch", group=0: sums over the whole batch divided by its number of
      positives (an image without any counts as one), so they do not depend on how the batch lies on devices.
      group=n: those of each n images by themselves, then the mean over the groups: what mmdetection has of n
      images a GPU. average="image": each image's sum divided by its own number, then the mean over images, as
      in torchvision. The weights of Eq. (1)-(5) are the same for both averages: the sums that Eq. (2) and (5)
      keep run over the batch or group (or its levels) before anything is divided.
    real: False for fillers, in whose `Targets` no anchor takes part; None: there are none.
  """
  positives = terms.positive.sum(axis=1)
  counts = jnp.maximum(positives, 1)
  own = counts if real is None else jnp.where(real, counts, 0)
  together = 1 if loss.average == "image" else loss.group  # images whose sums are divided by one number
  if together:
    of_group = lambda x: x.reshape(-1, together).sum(axis=1)
    numbers = of_group(own)
    total = lambda sums: jnp.sum(of_group(sums) / jnp.maximum(numbers, 1))
    normalizer = (numbers > 0).sum().astype(jnp.float32)
  else:
    total = lambda sums: sums
    normalizer = own.sum().astype(jnp.float32)
  by_image = together > 0
  localization = total(terms.localization(by_image))
  unweighted, iou_loss = (total(terms.of_positives(x, by_image)) for x in (terms.smooth_l1, terms.iou_loss))
  groups: Any = terms.concordance.size  # a group of fillers has none
  if real is not None and loss.group:
    groups = jnp.maximum(real.reshape(-1, loss.group).any(axis=1).sum(), 1)
  divisor = normalizer if real is None else jnp.maximum(normalizer, 1.0)  # all may be fillers
  return Losses(
    classification=total(terms.classification(by_image)) / divisor,
    localization=localization / divisor,
    positives=positives.mean(dtype=jnp.float32),
    other=iou_loss / divisor + terms.concordance.sum() / groups,
    positive_iou=jnp.sum(terms.iou, where=terms.positive) / jnp.maximum(positives.sum(), 1),
    loc_weight=localization / jnp.maximum(unweighted, jnp.finfo(unweighted.dtype).tiny),
    normalizer=normalizer,
  )
