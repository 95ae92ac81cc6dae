"""launch/colab.ipynb as it is committed, executed at toy size on the CPU."""

import base64
import json
import os
import re
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from safetensors.numpy import save_file

from iou_det.data.shapes import Shapes, export_coco
from tests.command import COMPILE_QUICKLY
from tests.golden.seeded_tensors import seeded_tensor
from tests.models import golden

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
LAST_STEP = 40  # 10 epochs of 4 steps: the training that is killed after its first epoch has some left
TOY = {
  "SHAPES": "toy_shapes",
  "EPOCHS": 10,
  "DATA_EPOCHS": 1,
  "PRETRAINED": "resnet18.safetensors",
  "FLAGS": "--config.model.depth=18 --config.model.width=8 --config.model.norm=frozen_bn"
  " --config.model.fpn_channels=16 --config.model.head_convs=1 --config.model.head_norm=none"
  " --config.model.min_level=4 --config.model.max_level=5 --config.anchors.octaves=1 --config.anchors.scale=2"
  " --config.data.short=64 --config.data.long=96 --config.train.warmup_steps=4 --config.train.log_every=4"
  " --config.eval.batch_size=8 --config.eval.score_threshold=0.001",
}


def run(folder: Path, *, cells: int | None = None, **settings) -> nbformat.NotebookNode:
  """Executes the notebook, or its first code cells, in a folder; returns it with its outputs."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  if cells is not None:
    notebook.cells = code_cells(notebook)[:cells]
  environment = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # iou-det of this environment
    "PYTHONPATH": str(ROOT),  # runs the code beside this test
    "IPYTHONDIR": str(folder / "ipython"),
    "XLA_FLAGS": COMPILE_QUICKLY,  # on one device, as on Colab
    "IOU_DET_COLAB": json.dumps(TOY | settings),
  }
  client = NotebookClient(
    notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
  )
  client.execute(env=environment)
  return notebook


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(notebook, text: str):
  """The only code cell that contains a text."""
  (cell,) = [cell for cell in code_cells(notebook) if text in cell.source]
  return cell


def printed(cell) -> str:
  return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell) -> list[bytes]:
  data = [output.get("data", {}).get("image/png") for output in cell.outputs]
  return [base64.b64decode(png) for png in data if png]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  """The folder in which it ran, and the notebook with its outputs."""
  folder = tmp_path_factory.mktemp("colab")
  (folder / "iou-det").symlink_to(ROOT)  # in place of the clone
  for split, images in (("train", 32), ("val", 8), ("test", 8)):
    export_coco(Shapes(split, images=images, height=64, width=96), folder / "toy_shapes")
  narrow = lambda size: size // 8 if size % 64 == 0 else size
  table = golden.names()["resnet18"]["tensors"]
  weights = {name: seeded_tensor(name, tuple(map(narrow, shape))) for name, shape in table.items()}
  save_file(weights, folder / "resnet18.safetensors")
  return folder, run(folder)


def test_it_is_committed_clean_and_asks_colab_for_a_gpu():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(notebook))
  assert notebook.metadata.kernelspec.name == "python3"
  assert notebook.metadata.accelerator == "GPU"


def test_every_cell_ran_without_installing_and_without_a_flood(executed):
  _, notebook = executed
  for cell in code_cells(notebook):
    assert cell.execution_count
    assert not [output for output in cell.outputs if output.output_type == "error"]
    assert len(printed(cell).splitlines()) < 60
  assert "iou-det is installed already" in printed(cell_with(notebook, "pip install"))


@pytest.mark.parametrize(
  ("command", "workdir", "split"),
  [
    ("configs/shapes.py --workdir=runs/shapes", "runs/shapes", "val"),
    ("iou-det eval", "runs/shapes", "test"),
    ("configs/retinanet.py", "runs/mine", "val"),
  ],
)
def test_the_coco_tables_are_printed(executed, command, workdir, split):
  folder, notebook = executed
  metrics = json.loads((folder / workdir / "eval" / split / "metrics.json").read_text())
  text = printed(cell_with(notebook, command))
  rows = re.findall(r"Average (?:Precision|Recall) .*= +(\S+)$", text, re.M)
  assert len(rows) == 12
  assert rows[:3] == [f"{metrics[name]:.3f}" for name in ("AP", "AP50", "AP75")]
  assert metrics["AP50"] > 0


def test_pictures_and_figures_are_inline(executed):
  folder, notebook = executed
  files = {
    "workdir=runs/shapes --split=test --limit": ["pictures/shapes/contact_sheet.png"],
    "pictures/mine": ["pictures/mine/contact_sheet.png"],
    "reproduce fig2": ["runs/figures/fig2/fig2.png", "runs/figures/fig2/score_against_iou.png"],
  }
  for command, paths in files.items():
    assert pictures(cell_with(notebook, command)) == [(folder / path).read_bytes() for path in paths]
  (curves,) = pictures(cell_with(notebook, "metrics.jsonl"))
  pixels = cv2.imdecode(np.frombuffer(curves, np.uint8), cv2.IMREAD_COLOR)
  # Matplotlib's first three colours (BGR), one for each loss.
  for colour in ((180, 119, 31), (14, 127, 255), (44, 160, 44)):
    assert np.all(pixels == colour, axis=-1).sum() > 100


def test_the_users_own_folder_starts_from_the_pretrained_weights(executed):
  _, notebook = executed
  assert "backbone from resnet18.safetensors: 100 tensors" in printed(
    cell_with(notebook, "configs/retinanet.py")
  )
  assert "mine/train: 160 images" in printed(cell_with(notebook, "iou-det prepare"))


def test_without_google_colab_a_folder_stands_in_for_drive_and_the_notebook_says_so(executed):
  folder, notebook = executed
  assert "This is not Colab, so there is no Google Drive" in printed(cell_with(notebook, "google.colab"))
  assert (folder / "drive" / "shapes_baseline" / "config.json").is_file()


def test_the_killed_training_goes_on_from_its_checkpoint(executed):
  folder, notebook = executed
  steps = lambda text: tuple(map(int, re.search(r"steps (\d+)\.\.(\d+)", text).groups()))
  assert steps((folder / "killed.log").read_text()) == (0, LAST_STEP)
  start, end = steps(printed(cell_with(notebook, "sh(TRAIN)")))
  assert 0 < start < end == LAST_STEP
  assert start % 4 == 0  # a whole epoch
  rows = (folder / "drive" / "shapes_baseline" / "metrics.jsonl").read_text().splitlines()
  logged = [row["step"] for row in map(json.loads, rows) if "loss" in row]
  # Each process logs its first step, and then every fourth.
  assert logged == sorted({1, start + 1, *range(4, LAST_STEP + 1, 4)})


def test_a_command_that_fails_stops_the_notebook(tmp_path):
  (tmp_path / "iou-det").symlink_to(ROOT)
  with pytest.raises(CellExecutionError, match="no_such_folder") as failure:
    run(tmp_path, cells=5, SHAPES="no_such_folder")
  assert "exit code 2" in str(failure.value) and "configs/shapes.py" in str(failure.value)


def test_without_the_address_of_the_repository_the_notebook_asks_for_it(tmp_path):
  with pytest.raises(CellExecutionError, match="REPOSITORY is empty"):
    run(tmp_path, cells=3)
