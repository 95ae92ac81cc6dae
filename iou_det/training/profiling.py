"""A window of steps under JAX's profiler, for XProf and TensorBoard (`config.train.profile_steps`)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging
from etils import epath


class Profiler:
  """Traces the steps from the first to the last of `window`, if a run comes by them, into a folder.

  In process 0 alone: its host, its devices. The trace is copied there, as the profiler writes to no bucket.
  """

  def __init__(self, window: Sequence[int], folder: epath.PathLike):
    self.window = window if jax.process_index() == 0 else ()
    self.folder = epath.Path(folder)
    self.written: tempfile.TemporaryDirectory | None = None

  def before(self, step: int) -> None:
    # A run that goes on within the window profiles what is left of it.
    if self.window and self.written is None and self.window[0] <= step <= self.window[1]:
      self.written = tempfile.TemporaryDirectory(prefix="iou_det_profile_")
      jax.profiler.start_trace(self.written.name)

  def after(self, step: int, output: jax.Array) -> None:
    """Ends the trace behind the last step, once the device is done with it."""
    if self.written is not None and step == self.window[1]:
      jax.block_until_ready(output)
      self.close()

  def close(self) -> None:
    """Writes what there is; also where a run ends within the window."""
    if self.written is None:
      return
    jax.profiler.stop_trace()
    here, self.window = Path(self.written.name), ()
    for file in filter(Path.is_file, here.rglob("*")):
      copy = self.folder / file.relative_to(here).as_posix()
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
    self.written.cleanup()
    self.written = None
    logging.info(f"the profile is in {self.folder}")
