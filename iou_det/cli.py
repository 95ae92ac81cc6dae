"""The `iou-det` command: one table from subcommand to the module that runs it."""

import importlib
import logging as std_logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from iou_det import leaving, streams
from iou_det.errors import EXIT_PREEMPTED, Preempted, UserError

COMMANDS = {
  "prepare": "data in any usual form -> a checked TFDS ArrayRecord dataset",
  "train": "train a config; resumes if the workdir has a checkpoint",
  "eval": "COCO metrics and detections.json of a trained workdir",
  "import-weights": "a detector of torchvision, mmdetection or detectron2 -> a file for us",
  "reproduce": "a table or figure of the paper: its runs, then the table",
  "report": "one HTML page of runs: figures, curves, errors, pictures",
  "fit-wloc": "w_loc of Table 4: keeps the first step's loss sum, any data",
  "doctor": "what machine, config and data are fit for, and what is odd in them",
  "bench": "speed and memory: train, input, predict, eval, scaling; JSON lines",
  "compile": "for chips that are not here: memory, bytes, FLOPs, what fits",
  "predict": "draw boxes on your own images with a trained workdir",
  "export": "a trained detector as one file: safetensors, StableHLO, ONNX",
}


def usage() -> str:
  rows = "\n".join(f"  {name:<14} {what}" for name, what in COMMANDS.items())
  return f"usage: iou-det COMMAND [--flags]\n\n{rows}\n\n`iou-det COMMAND --help` explains each."


def main(argv: list[str] | None = None) -> None:
  """Runs a subcommand and exits.

  With 0: done; 2: bad input, one line on stderr; 75: told to stop, or stuck, run it again; 130: Ctrl-C where
  there is nothing to go on with; 1: a bug. In a group of processes the end of one so ends all.

  Where nobody reads what it prints any more (`| head`, a terminal that is gone) it goes on, and ends with 0;
  where a full disk lost some of that, with 2, all else being done.
  """
  streams.set_up()
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(usage())
    sys.exit(0 if argv else 2)
  command = argv[0]
  if command not in COMMANDS:
    fail(command, f"unknown command; known: {', '.join(COMMANDS)}")
  leaving.listen(command)
  keep_compiled_programs()
  from iou_det import processes  # imports JAX, and so does
  from iou_det.config_args import check_command_line

  module = importlib.import_module(f"iou_det.commands.{command.replace('-', '_')}")  # defines its flags
  app.define_help_flags()
  if any(a in ("-h", "--help", "-help") for a in argv[1:]):
    print(f"iou-det {command}: {COMMANDS[command]}\n\n{module.__doc__}")
    print(flags.FLAGS.module_help(module))
    sys.exit(0)
  set_up_logging()
  code = None
  try:
    # ml_collections looks for --config.a.b in sys.argv
    sys.argv = [f"iou-det {command}", *check_command_line(argv[1:])]
    rest = flags.FLAGS(sys.argv)
    if command in ("bench", "import-weights", "predict", "reproduce"):  # take arguments that are no flags
      module.main(rest[1:])
    elif len(rest) > 1:
      raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    else:
      code = module.main()  # of doctor alone
    if lost := streams.failure():  # a full disk behind it; if the reader of a pipe has left, all is well
      raise UserError(f"all is done and written, but what it prints is lost ({lost.strerror})")
    processes.finish()
  except Preempted:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or another one on the way out would change the exit code
    processes.finish()
    sys.exit(EXIT_PREEMPTED)
  except Exception as error:
    if leaving.tell_others and processes.lost_another(error):
      line = f"another process was lost ({error}); the same command goes on from the last checkpoint"
      leaving.leave(EXIT_PREEMPTED, f"iou-det {command}: {line}")
    elif isinstance(error, UserError):
      fail(command, str(error))
    elif isinstance(error, flags.Error):
      fail(command, of_flags(command, error))
    elif isinstance(error, UnicodeEncodeError) and not names_are_utf8():
      fail(command, f"{error.object[:200]}: {error}")
    elif isinstance(error, OSError):  # a path that cannot be read or written, a full disk
      where, why = error.filename or "input or output", error.strerror or error
      path = not isinstance(error, ConnectionError)  # else of another program, or of a network
      fail(command, f"{where}: {why}; {'give another path or make room' if path else 'run it again'}")
    elif leaving.tell_others:
      traceback.print_exc()
      leaving.leave(1, f"iou-det {command}: {type(error).__name__}: {error}")
    raise
  if code:
    sys.exit(code)


def of_flags(command: str, error: flags.Error) -> str:
  """What absl says of flags, in a user's words."""
  text = str(error)
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    near = re.search(r"Did you mean: (.*) \?", text)
    hint = f"; did you mean {' or '.join(f'--{n}' for n in near[1].split(', '))}?" if near else ""
    if "config" in flags.FLAGS and not near:
      hint = (
        f"; a config's argument is written --config=NAME:{name}=..., its fields --config.SECTION.FIELD=..."
      )
    return f"there is no flag --{name}{hint} (iou-det {command} --help lists the flags)"
  if lacking := re.findall(r"Flag --(\w+) must have a value", text):
    return f"give {', '.join(f'--{name}=...' for name in lacking)} too"
  kinds = {
    r"could not convert string to float: .*": "must be a number",
    r"invalid literal for int.*": "must be a whole number",
  }
  for theirs, ours in kinds.items():
    text = re.sub(theirs, ours, text)
  return text


def keep_compiled_programs() -> None:
  """Has JAX, which reads its variable when imported, keep what it compiles in the user's cache folder."""
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(caches, "iou_det", "jax"))


def set_up_logging() -> None:
  """Shows our own information and everybody's warnings, on stderr with the time."""
  for handler in std_logging.root.handlers[:]:  # of imports that logged before: all would come twice
    if getattr(handler, "stream", None) is sys.__stderr__:
      std_logging.root.removeHandler(handler)
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.python_handler.setStream(sys.stderr)  # it has the one that was there when absl was imported
  handler.setFormatter(Lines("%(asctime)s %(message)s", "%H:%M:%S"))
  # Orbax warns of its own defaults at every turn; what goes wrong in it and its tasks comes as an exception.
  quiet = ("/orbax/", "/asyncio/")
  threshold = lambda path: std_logging.FATAL if any(q in path for q in quiet) else std_logging.WARNING
  ours = str(Path(__file__).parent)
  handler.addFilter(lambda r: r.pathname.startswith(ours) or r.levelno >= threshold(r.pathname))
  sys.unraisablehook = show_unraisable


class Lines(std_logging.Formatter):
  """In which names cannot act on the terminal."""

  def format(self, record: std_logging.LogRecord) -> str:
    return streams.escaped(super().format(record), keep="\n\t")


def show_unraisable(unraisable: Any) -> None:
  """As Python does, but for what TensorStore says, hundreds of times, after the end of a save that failed."""
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def names_are_utf8() -> bool:
  """Else files that a data set names are not found where the names are not ASCII."""
  return sys.getfilesystemencoding() == "utf-8"


def fail(command: str, message: str) -> None:
  """Prints one line and exits with code 2; what libraries say of their own ends then would only hide it."""
  sys.unraisablehook = lambda unraisable: None
  if not (message.isascii() or names_are_utf8()):
    taken = f"names of files are taken as {sys.getfilesystemencoding()} in this locale"
    message += f" ({taken}; PYTHONUTF8=1 takes them as UTF-8)"
  line = streams.one_line(f"iou-det {command}: {message}")
  if leaving.tell_others:
    leaving.leave(2, line)
  print(line, file=sys.stderr)
  sys.exit(2)
