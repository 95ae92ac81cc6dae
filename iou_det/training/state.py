"""The training state: made sharded, or read back from a workdir."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.data.records import Category
from iou_det.errors import UserError
from iou_det.models.pretrained import load_pretrained
from iou_det.models.retinanet import RetinaNet, trainable_mask
from iou_det.training.checkpoint import Checkpoints, abstract
from iou_det.training.mesh import BATCH, device_mesh, replicated, split_batch, split_state
from iou_det.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
  """What a step changes (step, params, opt_state) and the norm statistics, which stay constant.

  Leaves are arrays, or what stands for them (shapes, shardings), so their types are not checked.
  """

  step: PyTree  # int32 scalar
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree


def make_model(config: ConfigDict, num_classes: int) -> RetinaNet:
  """The network that a config describes; bfloat16 compute on accelerators if dtype is "auto"."""
  m = config.model
  dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(
    m.dtype, jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  )
  return RetinaNet(
    num_classes=num_classes,
    depth=m.depth,
    width=m.width,
    norm=m.norm,
    frozen_stages=m.frozen_stages,
    fpn_channels=m.fpn_channels,
    head_convs=m.head_convs,
    head_norm=m.head_norm,
    min_level=m.min_level,
    max_level=m.max_level,
    p6_from=m.p6_from,
    p7_relu=m.p7_relu,
    prior=m.prior,
    remat=m.remat,
    dtype=dtype,
    anchors_per_cell=config.anchors.octaves * len(config.anchors.ratios),
  )


def forward(
  model: RetinaNet, params: PyTree, batch_stats: PyTree, images: Float[Array, "b h w 3"], mesh: Mesh
) -> tuple[Float[Array, "b anchors classes"], Float[Array, "b anchors 4"]]:
  """Logits and box offsets, see `RetinaNet`; parameters are gathered, images split over `space`."""
  if mesh.size == 1:
    outputs: Any = model.apply({"params": params, "batch_stats": batch_stats}, images)
    return outputs
  constrain = jax.lax.with_sharding_constraint
  variables = constrain({"params": params, "batch_stats": batch_stats}, replicated(mesh))

  def on_device(variables, images):
    # Made different on each device once, for all uses: so gradients are summed over the levels that share the
    # heads before they are exchanged.
    variables = jax.lax.pcast(variables, BATCH, to="varying")
    if mesh.shape["space"] > 1:
      images = constrain(images, PartitionSpec(None, "space"))
    return model.apply(variables, images)

  # The batch is split by hand: where XLA splits both batch and rows, its gradients of kernels are wrong.
  batch = PartitionSpec(BATCH)
  split = jax.shard_map(
    on_device, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, axis_names=set(BATCH)
  )
  return constrain(split(variables, images), split_batch(mesh))


def state_maker(config: ConfigDict, model: RetinaNet, steps_per_epoch: int):
  """Returns the optimizer and a function key -> TrainState, to be traced or jitted."""
  # Parameters do not depend on the input's size; a small one keeps tracing cheap.
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  optimizer = make_optimizer(
    config.train, steps_per_epoch, trainable_mask(shapes["params"], config.model.frozen_stages)
  )

  def make(key: jax.Array) -> TrainState:
    variables = model.init(key, jnp.zeros(images.shape, images.dtype))
    params = variables["params"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get("batch_stats", {}),
      opt_state=optimizer.init(params),
    )

  return optimizer, make


def create_state(
  config: ConfigDict, model: RetinaNet, steps_per_epoch: int, mesh: Mesh, *, pretrained: bool
) -> tuple[TrainState, optax.GradientTransformation]:
  """A fresh state on the mesh; `pretrained`: with the backbone that the config names, if it names one."""
  optimizer, make = state_maker(config, model, steps_per_epoch)
  # Whole on each device and only then split: to compile random numbers for a split state takes twice as long.
  state = jax.jit(make, out_shardings=replicated(mesh))(jax.random.key(config.seed))
  state = jax.device_put(state, split_state(mesh, state))
  if config.model.frozen_stages >= 0 and not config.model.pretrained:
    logging.warning(
      "model.pretrained is empty and model.frozen_stages is %d: the frozen layers stay random; to train from "
      "scratch set model.norm=gn and model.frozen_stages=-1",
      config.model.frozen_stages,
    )
  if pretrained and config.model.pretrained:
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    variables = load_pretrained(config.model.pretrained, fresh)
    state = dataclasses.replace(state, **jax.device_put(variables, split_state(mesh, fresh)))
  return state, optimizer


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained detector read from a workdir."""

  config: ConfigDict
  categories: tuple[Category, ...]
  model: RetinaNet
  state: TrainState
  mesh: Mesh
  step: int


def read_config(workdir: str | Path) -> ConfigDict:
  """The config that a workdir was trained with."""
  path = Path(workdir) / "config.json"
  if not path.is_file():
    raise UserError(
      f"--workdir={workdir} is not a training run (it has no config.json); give train's --workdir"
    )
  return config_lib.from_json(path.read_text())


def load_run(workdir: str | Path, step: str = "last", batch_size: int | None = None) -> Run:
  """Reads a workdir's config and one of its checkpoints onto all devices.

  Args:
    step: "last", "best" or a number.
    batch_size: replaces the config's `eval.batch_size`.
  """
  config = read_config(workdir)
  config.eval.batch_size = batch_size or config.eval.batch_size
  checkpoints = Checkpoints(workdir, read_only=True)
  number = checkpoints.step_number(step)
  categories = tuple(Category(**c) for c in checkpoints.run_information(number)["categories"])
  model = make_model(config, len(categories))
  _, make = state_maker(config, model, steps_per_epoch=1)
  if jax.device_count() % (config.mesh.fsdp * config.mesh.space):
    logging.info("the run's mesh does not divide the %d devices here: data only", jax.device_count())
    config.mesh.update(fsdp=1, space=1)
  mesh = device_mesh(
    config.eval.batch_size, **config.mesh.to_dict(), setting="eval.batch_size (--batch_size)"
  )
  shapes = jax.eval_shape(make, jax.random.key(0))
  state = checkpoints.restore(number, abstract(shapes, split_state(mesh, shapes)))
  checkpoints.close()
  return Run(config, categories, model, state, mesh, number)


def run_information(
  config: ConfigDict, categories: tuple[Category, ...], step: int, steps_per_epoch: int
) -> dict[str, Any]:
  """What a checkpoint holds beside the state, as JSON: data position, config, category table."""
  return {
    "data": {"step": step, "steps_per_epoch": steps_per_epoch},
    "config": config.to_dict(),
    "categories": [dataclasses.asdict(c) for c in categories],
  }
