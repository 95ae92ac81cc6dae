"""What the paper argues about, measured on a training batch: which positives the gradient comes from.

A program of its own, run every `train.diagnostics_every` steps on the batch that the step is about to see,
so that the steps between cost nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from iou_det.config import input_size
from iou_det.forms import forms
from iou_det.models.retinanet import RetinaNet
from iou_det.network import make_anchors
from iou_det.ops.anchors import by_anchor
from iou_det.parallel import replicated, split_batch
from iou_det.training.accumulate import Outputs, network_outputs, pull_back
from iou_det.training.losses import Terms, detection_losses, loss_terms, make_targets
from iou_det.training.step import TrainState

SHARED = ("backbone", "fpn")  # what both losses train; the heads are one's alone
BINS = 10  # equal bins of the IoU of the positives' decoded boxes, 0 to 1; the last one includes 1


def by_iou(terms: Terms, gradient_norm: Float[Array, "batch anchors"]) -> dict[str, Float[Array, "..."]]:
  """Sums over the batch's positives in each bin of IoU: their number, `gradient_norm` (L2, of localization by
  an anchor's 4 offsets), the weights of Eq. (4) or (5) and of Eq. (2); and Eq. (2)'s normaliser, with
  loss.group the mean over the groups that have one."""
  index = jnp.clip((terms.iou * BINS).astype(jnp.int32), 0, BINS - 1)
  normalizer = terms.normalizer
  if normalizer.ndim > 1:  # 0 in a group without a positive
    normalizer = normalizer.sum(axis=0) / jnp.maximum((normalizer > 0).sum(axis=0), 1)
  count = lambda x: jnp.zeros(BINS).at[index].add(jnp.where(terms.positive, x, 0.0))
  return {
    "positives": count(1.0),
    "localization_gradient": count(gradient_norm),
    "localization_weight": count(terms.box_weights),
    "classification_weight": count(terms.own_weights),
    "eq2_normalizer": normalizer,
  }


def make_diagnostics(
  config: ConfigDict, model: RetinaNet, mesh: Mesh
) -> Callable[..., dict[str, Float[Array, "..."]]]:
  """The jitted `diagnose(state, batch, portrait)`; it sees the batch as the training step does.

  Beside `by_iou`: the norms of both losses' gradients of the parameters that they share.
  """

  def diagnose(state: TrainState, batch: dict[str, Array], portrait: bool) -> dict[str, Array]:
    inputs, outputs = network_outputs(config, model, state.variables, batch, portrait, mesh)
    targets = make_targets(config, inputs, *make_anchors(config, input_size(config, portrait)), portrait)

    def losses(outputs: Outputs) -> tuple[tuple[Array, Array], tuple[Terms, Array]]:
      logits, deltas, *ious = outputs
      terms = loss_terms(logits, deltas, targets, config, forms(mesh), *ious)
      out = detection_losses(terms, config.loss)
      return (out.classification, out.localization), (terms, out.normalizer)

    logits, deltas, *ious = outputs
    deltas = [level.astype(jnp.float32) for level in deltas]  # so that their gradient is not rounded either
    _, pull, (terms, normalizer) = jax.vjp(losses, (logits, deltas, *ious), has_aux=True)
    one, zero = jnp.ones(()), jnp.zeros(())
    norms = {}
    for name, which in (("classification", (one, zero)), ("localization", (zero, one))):
      (cotangents,) = pull(which)
      rounded = jax.tree.map(lambda c, o: c.astype(o.dtype), cotangents, outputs)
      gradient = pull_back(config, model, state.variables, (batch, rounded), portrait, mesh)
      norms[f"{name}_gradient_norm"] = optax.tree.norm([gradient[part] for part in SHARED])
    of_sum = normalizer * by_anchor(cotangents[1], 4)  # the localization's: it was the last
    return by_iou(terms, jnp.linalg.norm(of_sum, axis=-1)) | norms

  return jax.jit(
    diagnose, static_argnums=2, in_shardings=(None, split_batch(mesh)), out_shardings=replicated(mesh)
  )


def as_row(sums: dict[str, Float[np.ndarray, "..."]]) -> dict[str, float]:
  """Figures to log, `NAME/LOWER_EDGE`: shares of positives and of the localization gradient in each bin of
  IoU, mean weights there (left out where a bin is empty), and Eq. (2)'s normaliser: one, or `/levelN` from
  the finest level on. And the norms of both losses' gradients, where they are given."""
  positives = sums["positives"]
  factors = sums["eq2_normalizer"].tolist()
  row = {"eq2_normalizer": factors[0]}
  if len(factors) > 1:
    row = {f"eq2_normalizer/level{i}": factor for i, factor in enumerate(factors)}
  shares = {"positive_share": positives, "localization_gradient_share": sums["localization_gradient"]}
  for name, values in shares.items():
    row |= {f"{name}/{i / BINS:.1f}": float(v / max(values.sum(), 1e-12)) for i, v in enumerate(values)}
  for name in ("localization_weight", "classification_weight"):
    row |= {f"{name}/{i / BINS:.1f}": float(sums[name][i] / n) for i, n in enumerate(positives) if n}
  return row | {name: float(value) for name, value in sums.items() if name.endswith("gradient_norm")}
