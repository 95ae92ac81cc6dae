"""`iou-det predict` and `iou-det eval` on a trained workdir, as a user runs them."""

import json

import cv2
import numpy as np
import pytest

from tests.command import iou_det


def test_predict_draws_files_of_any_size(reference, tmp_path):
  workdir, _ = reference
  images = tmp_path / "images"
  images.mkdir()
  rng = np.random.default_rng(0)
  cv2.imwrite(str(images / "wide.jpg"), rng.integers(0, 255, (50, 90, 3), np.uint8))
  cv2.imwrite(str(images / "tall.PNG"), rng.integers(0, 255, (300, 120, 3), np.uint8))
  done = iou_det("predict", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--score=0", images)
  assert done.returncode == 0, done.stderr
  assert sorted(p.name for p in (tmp_path / "out").glob("0*.png")) == ["00001_tall.png", "00002_wide.png"]
  assert cv2.imread(str(tmp_path / "out/contact_sheet.png")) is not None
  rows = json.loads((tmp_path / "out/detections.json").read_text())
  assert {r["file"].rsplit("/")[-1] for r in rows} <= {"wide.jpg", "tall.PNG"}
  for row in rows:
    x, y, w, h = row["bbox"]
    width, height = (120, 300) if row["file"].endswith("PNG") else (90, 50)
    assert -1e-3 <= x and -1e-3 <= y and x + w <= width + 1e-3 and y + h <= height + 1e-3
    assert row["class"] in ("triangle", "rectangle", "star", "ellipse") and 0 <= row["score"] <= 1


def test_predict_on_a_split_and_eval_of_a_step(reference, tmp_path):
  workdir, metrics = reference
  done = iou_det("predict", f"--workdir={workdir}", f"--out={tmp_path}", "--split=val", "--limit=3")
  assert done.returncode == 0, done.stderr
  assert len(list(tmp_path.glob("0*.png"))) == 3
  done = iou_det("eval", f"--workdir={workdir}", "--step=8")
  assert done.returncode == 0, done.stderr
  assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in done.stdout
  again = json.loads((workdir / "eval/val/metrics.json").read_text())
  assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-6)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["nothing.jpg"], "no such file"),
    (["{text}"], "not one of .jpg"),
    (["{broken}"], "broken.jpg"),
    (["{empty}"], "has no .jpg"),
    ([], "either image files"),
    (["--split=dev"], "'dev'"),
    (["--split=val", "--step=5"], "last, best or a saved step"),
  ],
)
def test_bad_input_is_one_line(reference, tmp_path, argv, message):
  text, broken, empty = tmp_path / "a.txt", tmp_path / "broken.jpg", tmp_path / "empty"
  text.write_text("x")
  good = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
  broken.write_bytes(good[: len(good) // 2])
  empty.mkdir()
  argv = [a.format(text=text, broken=broken, empty=empty) for a in argv]
  done = iou_det("predict", f"--workdir={reference[0]}", f"--out={tmp_path / 'out'}", *argv)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr.strip().splitlines()[-1]
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "out").exists()
