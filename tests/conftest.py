"""Every jaxtyping shape in the package is checked in every test; 8 simulated devices; real data if named."""

import atexit
import os
import signal
import tempfile
from importlib.util import find_spec

from tests import compilers, small_disk
from tests.browser import chromium
from tests.command import COMPILE_QUICKLY

os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", COMPILE_QUICKLY]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The same small programs are compiled by many tests and by processes that tests start: once is enough.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.TemporaryDirectory(prefix="iou_det_tests_")
  atexit.register(cache.cleanup)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# In the background of a shell Ctrl-C is ignored, under nohup SIGHUP, also by the processes that tests start,
# and send them to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
  signal.signal(signal.SIGHUP, signal.SIG_DFL)

from pathlib import Path

import pytest
from absl import flags
from jaxtyping import install_import_hook

install_import_hook("iou_det", "beartype.beartype")
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags

# Files that take minutes: first, so that no worker is left alone with one at the end.
SLOW = (
  "test_guards.py",
  "test_processes.py",
  "test_campaign.py",
  "test_reproduce.py",
  "test_loop.py",
  "test_colab.py",
)
REAL_DATA = os.environ.get("IOU_DET_TEST_DATA")
ONNX = all(map(find_spec, ("jax2onnx", "onnxruntime")))
BROWSER = chromium()
AOT = compilers.there()


def pytest_configure(config):
  config.addinivalue_line("markers", "real_data: reads the data sets in the folder $IOU_DET_TEST_DATA")
  config.addinivalue_line("markers", "tmpfs: mounts small disks")
  config.addinivalue_line("markers", "browser: drives a Chromium, see tests/browser.py")
  config.addinivalue_line("markers", "aot: compiles for absent TPUs and GPUs, see tests/compilers.py")
  config.addinivalue_line("markers", "onnx: exports by jax2onnx, which launch/test.sh installs")


def pytest_collection_modifyitems(config, items):
  items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))
  disk = small_disk.namespace()
  needed = (("real_data", REAL_DATA), ("onnx", ONNX), ("tmpfs", disk), ("browser", BROWSER), ("aot", AOT))
  lacking = [marker for marker, there in needed if not there]
  out = [item for item in items if any(map(item.get_closest_marker, lacking))]
  if out:
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)


def pytest_report_header():
  data = f"IOU_DET_TEST_DATA={REAL_DATA}"
  if not REAL_DATA:
    data = "IOU_DET_TEST_DATA is not set: the tests on real data sets are deselected"
  onnx = "" if ONNX else "; jax2onnx is not installed: the tests of ONNX are deselected"
  aot = "" if AOT else "; no compilers for TPUs and GPUs: the tests of absent chips are deselected"
  disk = "" if small_disk.namespace() else "; no tmpfs can be mounted: the tests of full disks are deselected"
  none = "no playwright with a chromium (on PATH or IOU_DET_CHROMIUM): the tests of pages are deselected"
  return data + onnx + aot + disk + ("" if BROWSER else f"; {none}")


@pytest.fixture(scope="session")
def real_data() -> Path:
  """Folder with bccd/, coco_mini/ and deeppcb/."""
  return Path(str(REAL_DATA))


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
  """A COCO folder of shapes: 32 training and 13 validation images of 96x64."""
  from iou_det.data.shapes import Shapes, export_coco  # after the import hook

  root = tmp_path_factory.mktemp("shapes")
  for split, images in (("train", 32), ("val", 13)):
    export_coco(Shapes(split, images=images, height=64, width=96), root)
  return root


@pytest.fixture(scope="session")
def reference(tmp_path_factory, shapes_folder):
  """A tiny run of two epochs on one device that nothing interrupted: its workdir and metrics."""
  import jax

  from iou_det.training.loop import train
  from tests.tiny import tiny_config

  workdir = tmp_path_factory.mktemp("reference")
  return workdir, train(tiny_config(shapes_folder), workdir, devices=jax.devices()[:1])
