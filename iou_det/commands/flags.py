"""Flags that several commands have."""

from absl import flags
from ml_collections import config_flags

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


def distributed() -> flags.FlagHolder:
  text = (
    "This is one of several processes; they find each other by SLURM, TPU pod, Open MPI, or by "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
  )
  return flags.DEFINE_bool("distributed", False, text)
