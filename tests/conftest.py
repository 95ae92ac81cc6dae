"""Every jaxtyping shape in the package is checked in every test; 8 simulated devices; real data if named."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import pytest
from absl import flags
from jaxtyping import install_import_hook

install_import_hook("iou_det", "beartype.beartype")
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags

REAL_DATA = os.environ.get("IOU_DET_TEST_DATA")


def pytest_configure(config):
  config.addinivalue_line("markers", "real_data: reads the data sets in the folder $IOU_DET_TEST_DATA")


def pytest_collection_modifyitems(config, items):
  if REAL_DATA:
    return
  real = [item for item in items if item.get_closest_marker("real_data")]
  if real:
    items[:] = [item for item in items if item not in real]
    config.hook.pytest_deselected(items=real)


def pytest_report_header():
  if REAL_DATA:
    return f"IOU_DET_TEST_DATA={REAL_DATA}"
  return "IOU_DET_TEST_DATA is not set: the tests on real data sets are deselected"


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
