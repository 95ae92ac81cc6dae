"""What the paper argues about, measured on a training batch: which positives the gradient comes from.

A program of its own, run every `train.diagnostics_every` steps on the batch that the step is about to see,
so that the steps between cost nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from iou_det.config import input_size
from iou_det.forms import forms
from iou_det.models.retinanet import RetinaNet
from iou_det.network import forward, make_anchors, network_inputs
from iou_det.ops.anchors import by_anchor
from iou_det.parallel import replicated, split_batch
from iou_det.training.accumulate import network_outputs
from iou_det.training.losses import Terms, detection_losses, loss_terms, make_targets
from iou_det.training.step import TrainState

BINS = 10  # equal bins of the IoU of the positives' decoded boxes, 0 to 1; the last one includes 1


def by_iou(terms: Terms, gradient_norm: Float[Array, "batch anchors"]) -> dict[str, Float[Array, "..."]]:
  """Sums over the batch's positives in each bin of IoU: their number, `gradient_norm` (L2, of localization by
  an anchor's 4 offsets), the weights of Eq. (4) or (5) and of Eq. (2); and Eq. (2)'s normaliser."""
  index = jnp.clip((terms.iou * BINS).astype(jnp.int32), 0, BINS - 1)
  count = lambda x: jnp.zeros(BINS).at[index].add(jnp.where(terms.positive, x, 0.0))
  return {
    "positives": count(1.0),
    "localization_gradient": count(gradient_norm),
    "localization_weight": count(terms.box_weights),
    "classification_weight": count(terms.own_weights),
    "eq2_normalizer": terms.normalizer,
  }


def make_diagnostics(
  config: ConfigDict, model: RetinaNet, mesh: Mesh
) -> Callable[..., dict[str, Float[Array, "..."]]]:
  """The jitted `diagnose(state, batch, portrait)`; it sees the batch as the training step does."""

  def diagnose(state: TrainState, batch: dict[str, Array], portrait: bool) -> dict[str, Array]:
    if config.train.accumulate == 1:
      inputs = network_inputs(config, batch, portrait, mesh, train=True)[0]
      logits, deltas = forward(model, state.variables, inputs.images, mesh)
    else:
      inputs, (logits, deltas) = network_outputs(config, model, state.variables, batch, portrait, mesh)
    targets = make_targets(config, inputs, *make_anchors(config, input_size(config, portrait)), portrait)

    def localization(deltas):
      terms = loss_terms(logits, deltas, targets, config, forms(mesh))
      if config.loss.average == "image":  # it has another share of every image; else the sum does
        return detection_losses(terms, "image").localization, terms
      return terms.localization(), terms

    deltas = [level.astype(jnp.float32) for level in deltas]  # so that their gradient is not rounded either
    gradient, terms = jax.grad(localization, has_aux=True)(deltas)
    return by_iou(terms, jnp.linalg.norm(by_anchor(gradient, 4), axis=-1))

  return jax.jit(
    diagnose, static_argnums=2, in_shardings=(None, split_batch(mesh)), out_shardings=replicated(mesh)
  )


def as_row(sums: dict[str, Float[np.ndarray, "..."]]) -> dict[str, float]:
  """Figures to log, `NAME/LOWER_EDGE`: shares of positives and of the localization gradient in each bin of
  IoU, mean weights there (left out where a bin is empty), and Eq. (2)'s normaliser: one, or `/levelN` from
  the finest level on."""
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
  return row
