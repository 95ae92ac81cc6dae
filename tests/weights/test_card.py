"""Model cards say what a run's own files say, and go with a detector from file to file."""

import datetime
import json
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from iou_det.weights.card import model_card, write_card
from iou_det.weights.load import read_detector
from iou_det.weights.saved import read_saved, write_saved
from tests.command import iou_det

ROOT = Path(__file__).parents[2]


def row(card, what):
  """The right column of a card's table."""
  (line,) = [line for line in card.splitlines() if line.startswith(f"| {what} |")]
  return line.split(" | ", 1)[1].removesuffix(" |")


@pytest.fixture(scope="module")
def card(reference):
  return model_card(read_detector(reference[0]), "x.safetensors", "safetensors")


def test_a_card_says_what_the_run_s_files_say(reference, card, shapes_folder):
  metrics = json.loads((reference[0] / "eval/val/metrics.json").read_text())
  figures = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("AP", "AP50", "AP75"))
  assert row(card, "box val") == f"{figures} (13 images)"
  assert row(card, "trained on") == f"{shapes_folder.name}, split train, 32 images"
  assert row(card, "4 classes (ids)") == "triangle (1), rectangle (2), star (3), ellipse (4)"
  assert row(card, "trained for") == "8 steps" and row(card, "IoU-balanced losses").startswith("eta 1.5,")
  assert "model.width: 8 != 64" in card and card.startswith("---\nlibrary_name: iou-det\n")
  assert str(reference[0].parent) not in card and str(shapes_folder.parent) not in card


def test_it_says_what_made_the_file(card):
  written = row(card, "written")
  assert written.startswith(f"{datetime.date.today().isoformat()} by iou-det 0.")
  git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
  assert git.returncode or git.stdout.strip() in written
  assert "Apache-2.0" in row(card, "licence")


def test_of_another_step_stands_what_training_measured_there(reference):
  rows = [json.loads(line) for line in (reference[0] / "metrics.jsonl").read_text().splitlines()]
  (expected,) = [r["val/AP"] for r in rows if r["step"] == 4 and "val/AP" in r]
  assert row(model_card(read_detector(reference[0], "4"), "x", "onnx"), "box val").startswith(
    f"AP {expected:.3f}"
  )


def test_what_was_not_measured_is_said_so(reference):
  saved = read_detector(reference[0])._replace(facts={}, step=0)
  card = model_card(saved, "x.onnx", "onnx", "class_agnostic")
  assert row(card, "AP") == "not measured" and row(card, "trained on") == "not known"
  assert row(card, "detects otherwise than measured") == "class_agnostic"


def test_it_goes_with_a_detector_from_file_to_file_and_older_files_have_none(reference, card, tmp_path):
  path, older = tmp_path / "x.safetensors", tmp_path / "older.safetensors"
  write_saved(path, read_detector(reference[0]), card)
  write_card(path, card)
  assert (tmp_path / "x.safetensors.md").read_text() == card
  with safe_open(path, "numpy") as file:
    metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
  assert metadata["model_card"] == card
  assert model_card(read_saved(path), "x.safetensors", "safetensors") == card
  save_file(tensors, older, {k: v for k, v in metadata.items() if k not in ("crc32", "facts", "model_card")})
  assert row(model_card(read_saved(older), "x", "onnx"), "AP") == "not measured"


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_export_puts_it_beside_the_file(reference, tmp_path, kind):
  path = tmp_path / f"out/shapes.{kind}"
  done = iou_det(
    "export", f"--workdir={reference[0]}", f"--format={kind}", f"--out={path}", "--class_agnostic"
  )
  assert done.returncode == 0, done.stderr
  card = path.with_name(f"shapes.{kind}.md").read_text()
  assert card.splitlines()[5] == f"# shapes.{kind}" and row(card, "detects otherwise than measured")
