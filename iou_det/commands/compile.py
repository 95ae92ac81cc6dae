"""Compiles the training step, or detection, for chips that are not here, and says what it needs of them.

usage: iou-det compile --config=retinanet:short=800 --target=v5e:4x4,h100:1x8 [--batch_size=64]
       iou-det compile --config=shapes --target=v5e:2x2 --slices=2
       iou-det compile --config=retinanet:short=800 --target=a100 --what=detect --largest

Targets: v5e:4x4, v6e:4x4, v5p:2x2x4 (a TPU's topology; needs the extra aot-tpu), h100:2x8, h200, a100 (hosts
x chips of each; the extra aot-gpu), cpu. No such chip is needed, and none that is here is used. Each prints a
page and a line of JSON: a chip's memory and what the program takes of it; the bytes that it moves and its
kernels by part of the network, beside what its convolutions and the optimizer cannot do without; FLOPs,
collectives, and a bound that follows from the chip's figures. All of it is the compiler's, or arithmetic:
nothing is run or timed.

An R50 at 800x1344 takes about half a minute of a core for a GPU, ten minutes for a TPU.
"""

import json

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from iou_det.commands import flags as common
from iou_det.config import to_choose
from iou_det.config_args import config_from_flag
from iou_det.errors import UserError

CONFIG = common.config("Its data are not read.")
TARGET = flags.DEFINE_list("target", None, "Chips to compile for, as v5e:4x4,h100:1x8,a100.", required=True)
BATCH_SIZE = common.batch_size()
WHAT = flags.DEFINE_enum("what", "train", ["train", "detect"], "A training step, or detection with NMS.")
SLICES = flags.DEFINE_integer("slices", 1, "So many of a TPU's topology, as one job.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 80, "Number of classes.", lower_bound=1)
LARGEST_HELP = "Also the largest batch a chip that fits; compiles several times."
LARGEST = flags.DEFINE_bool("largest", False, LARGEST_HELP)


def main() -> None:
  jax.config.update("jax_platforms", "cpu")  # before JAX looks for devices: another run may have them
  jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are of compiling
  config = compiled_config()
  from iou_det.aot.program import compile_for, largest_batch, mesh_of
  from iou_det.aot.report import figures, page
  from iou_det.aot.target import FORMS, get_target

  if not TARGET.value:
    raise UserError(f"--target is empty; give one or more of {FORMS}")
  targets = [get_target(text, SLICES.value) for text in TARGET.value]
  for target in targets:  # refused before minutes are spent on another
    mesh_of(target, config, WHAT.value)
  for target in targets:
    logging.info(f"compiling for {target.name}{', which takes minutes' if target.tpu else ''}")
    found = compile_for(target, config, CLASSES.value, WHAT.value)
    largest: int | None = None
    if LARGEST.value:
      chips = len(target.devices)

      def peak_of(images: int, target=target, chips=chips) -> int | None:
        logging.info(f"compiling for {target.name} with {images} images a chip")
        sized = with_batch(config, images * chips)
        memory = compile_for(target, sized, CLASSES.value, WHAT.value).memory
        return memory.peak if memory else None

      size = config.train.batch_size if WHAT.value == "train" else config.eval.batch_size
      peak = found.memory.peak if found.memory else None
      parts = config.train.accumulate if WHAT.value == "train" else 1
      largest = parts * largest_batch(peak_of, size // chips, peak, target.chip.memory)
    row = figures(found, largest)
    print(page(row))
    print(json.dumps(row), flush=True)


def compiled_config() -> ConfigDict:
  if CONFIG.value is None:
    raise UserError("--config is missing; for example --config=retinanet:short=800")
  config = CONFIG.value
  if BATCH_SIZE.value:
    config.train.batch_size = config.eval.batch_size = BATCH_SIZE.value
  if WHAT.value == "detect":
    config.loss.group = 0  # which a batch to detect in need not divide
  if not config.data.path and not to_choose(config):
    config.data.path = "made up"
  from iou_det.training.own import settle

  return settle(config_from_flag(CONFIG))[0]


def with_batch(config: ConfigDict, images: int) -> ConfigDict:
  config = ConfigDict(config.to_dict())
  config.train.batch_size = config.eval.batch_size = images
  config.loss.group = 0  # it takes no memory, and does not divide every number that is tried
  return config
