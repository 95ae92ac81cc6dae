"""`iou-det predict` and `iou-det eval` on a trained workdir, as a user runs them."""

import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

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


def brought(folder):
  """A folder as people have it; the names of what is drawn of it, in order, and of what is named as bad."""
  (folder / "x.jpg").mkdir(parents=True)
  (folder / "._hidden.jpg").write_bytes(b"\0\x05\x16\x07\0\x02")
  (folder / "notes.txt").write_text("no picture, and not named like one")
  picture = Image.effect_noise((90, 50), 60)
  phone = Image.Exif()
  phone[0x0112] = 6
  name = lambda raw: os.path.join(os.fsencode(folder), raw)
  deep = Image.fromarray((np.asarray(picture).astype(np.uint16)) * 16)
  deep.save(folder / "a deep.png")
  picture.save(name(b"caf\xe9.png"), "PNG")
  (folder / "cut.webp").write_bytes(b"RIFF\xff\0\0\0WEBPVP8 ")
  picture.save(folder / "new\nline.bmp")
  picture.save(folder / "no_suffix", "TIFF")
  (folder / "page.jpg").write_text("<!doctype html><title>404")
  picture.save(folder / "phone.jpg", exif=phone)
  long = "\u6f22" * 82 + ".png"  # 250 bytes, as long as names can be
  picture.save(folder / long)
  return (
    ["a deep", "caf_xe9", "new_line", "no_suffix", "phone", "\u6f22" * 66],
    ["a deep.png", "caf\\xe9.png", "new\nline.bmp", "no_suffix", "phone.jpg", long],
    ["cut.webp", "page.jpg"],
  )


def test_a_folder_as_people_have_it_is_done_and_what_cannot_be_read_named_at_the_end(reference, tmp_path):
  workdir, _ = reference
  drawn, names, bad = brought(tmp_path / "photos")
  arguments = ["predict", f"--workdir={workdir}", "--score=0", tmp_path / "photos"]
  done = iou_det(*arguments, f"--out={tmp_path / 'out'}")
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert "2 of 8 images cannot be read" in last and all(f"/photos/{name}: " in last for name in bad)
  assert "no picture, but an HTML page" in last and "Traceback" not in done.stderr
  assert "3 names in folders passed over" in done.stdout
  assert "images turned by EXIF (--exif=ignore: as stored): 1" in done.stdout
  assert "16-bit images, taken as 12 bits: 1 (largest value " in done.stdout
  pictures = sorted(p.name for p in (tmp_path / "out").glob("0*.png"))
  assert [name[6:-4] for name in pictures] == drawn
  height, width = cv2.imread(str(tmp_path / "out" / pictures[4])).shape[:2]
  assert height > width  # as a viewer shows it
  rows = json.loads((tmp_path / "out/detections.json").read_bytes().decode("utf-8", "strict"))
  assert {r["file"] for r in rows} <= {f"{tmp_path / 'photos'}/{name}" for name in names}
  json.dumps(rows, ensure_ascii=False).encode()  # no half of a character in it

  done = iou_det(*arguments, f"--out={tmp_path / 'again'}", "--skip_bad", "--exif=ignore")
  assert done.returncode == 0, done.stderr
  assert "2 of 8 images cannot be read" in done.stdout
  assert "images whose EXIF orientation is ignored: 1" in done.stdout
  height, width = cv2.imread(str(tmp_path / "again" / pictures[4])).shape[:2]
  assert height < width


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
    (["{text}", "{broken}"], "2 of 2 images cannot be read"),
    (["{broken}", "--skip_bad"], "broken.jpg: truncated JPEG"),
    (["{empty}"], "the folder has no pictures or videos in it"),
    (["--split=val", "--exif=ignore"], "--exif is for image files"),
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
