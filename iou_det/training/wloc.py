"""w_loc: the localization weight that keeps the first step's loss sum (Section 3.2 and Table 4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from iou_det.config import with_loss
from iou_det.data.pipeline import train_batches
from iou_det.data.plan import make_plan
from iou_det.data.source import Source
from iou_det.errors import UserError
from iou_det.forms import forms
from iou_det.network import forward, make_model, network_inputs
from iou_det.parallel import device_mesh, to_device
from iou_det.processes import of_process_0
from iou_det.storage import AnyPath, read_json, write_json
from iou_det.training.losses import loss_terms, make_targets
from iou_det.training.step import create_state

STARTS = ("anchors", "network")
IMAGES = 1000  # of each source, at most


def fit_w_loc(
  config: ConfigDict,
  sources: Sequence[Source],
  lambdas: Sequence[float],
  *,
  start: str = "anchors",
  images: int = IMAGES,
) -> list[float]:
  """w_loc for each exponent: sum(smooth L1) / sum(IoU^lambd * loss) over the positives.

  Inputs, matching and losses are those of the training step, augmentation included. The loss in the
  denominator is the config's, the one above it always the baseline's smooth L1, so that what is fitted is
  the factor that keeps the baseline's loss sum.

  Args:
    sources: their images count together; each is filtered as for training.
    lambdas: exponents of Eq. (4).
    start: "anchors": the prediction is the matched anchor itself (offsets 0), what an untrained head
      without norm puts out; "network": what the network that the config describes puts out untrained.
    images: at most so many of each source, the first of a random order; without a positive a UserError.
  """
  if start not in STARTS:
    raise UserError(f"start={start!r}: must be one of {', '.join(STARTS)}")
  if config.loss.loc_weights == "eq5":
    raise UserError("loss.loc_weights=eq5: Eq. (5) keeps the loss sum by itself; give w_loc=1")
  model = make_model(config, len(sources[0].categories))
  mesh = device_mesh(1, jax.local_devices()[:1], setting="images of fit-wloc")
  state = None
  if start == "network":
    state, _ = create_state(config, model, 1, mesh, sources[0].categories)
  config = with_loss(config, lambd=0.0, w_loc=1.0, group=0)
  baseline = with_loss(config, localization="smooth_l1")
  exponents = jnp.array(lambdas, jnp.float32)

  def sums(state, batch, portrait: bool) -> Float[Array, "sums"]:
    inputs, anchors, level_sizes = network_inputs(config, batch, portrait, mesh, train=True)
    zeros = lambda values: [jnp.zeros((len(inputs.images), n, 1, values)) for n in level_sizes]
    logits, deltas = zeros(model.num_classes), zeros(4)
    if state is not None:
      logits, deltas = forward(model, state.variables, inputs.images, mesh)[:2]
    targets = make_targets(config, inputs, anchors, level_sizes, portrait)
    terms = lambda c: loss_terms(logits, deltas, targets, c, forms(mesh))
    own = terms(config)
    plain = own if config.loss.localization == "smooth_l1" else terms(baseline)
    loss = jnp.where(own.positive, own.box_weights * own.box_loss, 0.0)
    weighted = jax.lax.map(lambda lambd: jnp.sum(own.iou**lambd * loss), exponents)
    return jnp.concatenate([plain.localization()[None], weighted])

  compiled = jax.jit(sums, static_argnums=2)
  data = ConfigDict(config.data.to_dict() | {"workers": 0})  # a process for each image would not pay
  total, used = jnp.zeros(1 + len(lambdas)), 0
  for source in sources:
    plan = make_plan(source, config, batch_size=1)  # one by one: no image twice to fill a batch
    number = min(images, plan.steps_per_epoch)
    batches = train_batches(source, plan, data, range(number), (0, 1))
    for batch, portrait in batches:
      total = total + compiled(state, to_device(batch, mesh), portrait)
    used += number
  before, *after = [float(x) for x in total]
  if min(after) <= 0:
    raise UserError(
      f"w_loc cannot be fitted: the localization loss of {used} images is {min(after)}; look at the anchors "
      "(config.anchors.scale) and boxes, or give loss.w_loc as a number"
    )
  logging.info("w_loc fitted on %d images (%s): %s", used, start, [round(before / x, 4) for x in after])
  return [before / x for x in after]


def resolve_w_loc(config: ConfigDict, source: Source, workdir: AnyPath) -> ConfigDict:
  """The config with a number for `loss.w_loc="auto"`: fitted once, then kept in workdir/w_loc.json."""
  if config.loss.w_loc != "auto":
    return config
  path = workdir / "w_loc.json"
  w_loc = of_process_0(read_json(path, "train in a new --workdir")["w_loc"] if path.exists() else None)
  if w_loc is None:
    w_loc = of_process_0(fit_w_loc(config, [source], [config.loss.lambd])[0])
    if jax.process_index() == 0:
      write_json(path, {"w_loc": w_loc, "lambd": config.loss.lambd, "start": "anchors"})
  return with_loss(config, w_loc=w_loc)
