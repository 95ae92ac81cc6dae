"""The programs in README.md and docs/ do what they say; that of the losses is in test_library.py."""

import cv2
import numpy as np
import pytest

from iou_det.data import open_dataset
from iou_det.data.pipeline import decode_image
from iou_det.weights.load import load_detector
from tests import docs
from tests.command import iou_det

SPECIAL = ("InferenceSlicer", "shapes.stablehlo", "shapes.onnx", "def loss_fn")  # have tests of their own


def program(part: str) -> str:
  """The one program with something in it."""
  (found,) = [b.text for b in docs.blocks("python") if part in b.text]
  return found


@pytest.fixture
def here(reference, tmp_path, monkeypatch):
  """A folder with runs/demo and four pictures, alone and as the quarters of large.jpg: detector, pictures."""
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs/demo").symlink_to(reference[0])
  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val")
  pictures = [decode_image(source[i]) for i in range(4)]
  large = np.vstack([np.hstack(pictures[:2]), np.hstack(pictures[2:])])
  cv2.imwrite(str(tmp_path / "large.jpg"), large[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
  cv2.imwrite(str(tmp_path / "photo.jpg"), pictures[0][..., ::-1])
  monkeypatch.chdir(tmp_path)
  return detector, pictures


@pytest.mark.parametrize(
  "block", [b for b in docs.blocks("python") if not any(p in b.text for p in SPECIAL)], ids=lambda b: b.where
)
def test_a_program_runs(here, block, capsys):
  exec(block.text, {})
  printed = capsys.readouterr().out.splitlines()
  if "print(name, score, box)" in block.text:
    assert [line.split()[0] for line in printed] == here[0]("photo.jpg").names and printed


def test_supervision_slices_a_large_image(here):
  """Tiles without overlap are the pictures: what is found in each, moved to its place."""
  sizes = "slice_wh=(160, 128), overlap_wh=(32, 32)", "slice_wh=(96, 64), overlap_wh=(0, 0)"
  names: dict = {}
  exec(program("InferenceSlicer").replace(*sizes), names)
  found, detector = names["found"], here[0]
  quarters = cv2.imread("large.jpg")[..., ::-1]
  expected = []
  for y in (0, 64):
    for x in (0, 96):
      boxes, scores, _ = detector(np.ascontiguousarray(quarters[y : y + 64, x : x + 96])).to_arrays()
      expected += [(s, *(b + [x, y, x, y])) for s, b in zip(scores, boxes, strict=True)]
  ours = sorted((s, *b) for s, b in zip(found.confidence, found.xyxy, strict=True))
  # Its own NMS drops what overlaps by more than half; ours has done so within a tile.
  np.testing.assert_allclose(ours, sorted(expected), atol=1e-3)
  assert len(ours) > 4


@pytest.mark.parametrize("kind", ["stablehlo", pytest.param("onnx", marks=pytest.mark.onnx)])
def test_exported_programs_run_as_it_says(here, kind):
  """What the command writes, run by the page's lines, finds what the detector finds."""
  detector, pictures = here
  done = iou_det("export", "--workdir=runs/demo", f"--format={kind}", f"--out=shapes.{kind}")
  assert done.returncode == 0 and "4 classes, step 8" in done.stdout, done.stderr
  found: dict = {"images": pictures[0][None]}
  exec(program(f"shapes.{kind}"), found)
  expected = detector(pictures[0])
  number = int(np.asarray(found["valid"]).sum())
  assert [found["names"][k] for k in np.asarray(found["labels"])[0, :number]] == expected.names
  np.testing.assert_allclose(np.asarray(found["boxes"])[0, :number], expected.boxes, atol=0.05)
