"""Flags that several commands have."""

from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from iou_det.config import check_field
from iou_det.errors import UserError
from iou_det.ops.detection import NMS

flags.disclaim_key_flags()  # each command's --help lists them as its own


def config(also: str = "") -> flags.FlagHolder:
  text = (
    f"Config file or the name of a shipped one, and its argument: FILE.py:ARG, shapes:eta=0. {also}".rstrip()
  )
  return config_flags.DEFINE_config_file("config", None, text)


def trained_workdir() -> flags.FlagHolder:
  text = "Folder that `iou-det train` or `iou-det import-weights` wrote, or a file of `iou-det export`."
  return flags.DEFINE_string("workdir", None, text, required=True)


def step() -> flags.FlagHolder:
  return flags.DEFINE_string("step", "last", "Checkpoint: last, best or a step number.")


def batch_size() -> flags.FlagHolder:
  text = "Images per step over all devices; default: the config's."
  return flags.DEFINE_integer("batch_size", None, text, lower_bound=1)


def test_time() -> Callable[[ConfigDict], str]:
  """Flags that replace settings of the section `eval`: a function that does so and says what it set."""
  agnostic = flags.DEFINE_bool("class_agnostic", None, "NMS over all classes at once; default: the config's.")
  nms = flags.DEFINE_enum("nms", None, list(NMS), "Soft-NMS or another; default: the config's.")
  flip = flags.DEFINE_bool("tta_flip", None, "Detect on the mirrored image too; default: the config's.")
  text = "Detect at these factors of the image size, as 0.8,1,1.25; default: the config's."
  scales = flags.DEFINE_list("tta_scales", None, text)

  def replace(config: ConfigDict) -> str:
    changes: dict[str, Any] = {
      flag.name: flag.value for flag in (agnostic, nms, flip) if flag.value is not None
    }
    if scales.value is not None:
      try:
        changes["tta_scales"] = tuple(map(float, scales.value))
      except ValueError:
        raise UserError(f"--tta_scales={','.join(scales.value)}: must be numbers, as 0.8,1,1.25") from None
      check_field("eval.tta_scales", changes["tta_scales"])
    config.eval.update(changes)
    words = {True: "", False: "_off"} | {name: f"_{name}" for name in NMS}
    shown = lambda value: (
      "_" + "x".join(f"{v:g}" for v in value) if isinstance(value, tuple) else words[value]
    )
    return "_".join(name + shown(value) for name, value in changes.items())

  return replace


def distributed() -> flags.FlagHolder:
  text = (
    "This is one of several processes; they find each other by SLURM, TPU pod, Open MPI, or by "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
  )
  return flags.DEFINE_bool("distributed", False, text)
