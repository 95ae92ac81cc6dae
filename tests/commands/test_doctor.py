"""`iou-det doctor` as a user meets it: one page, and exit code 0, 1 or 2."""

import json
import shutil

import pytest

from tests.command import iou_det


def page(*arguments, **environment):
  """Exit code and lines; nothing but the page is printed."""
  done = iou_det("doctor", *arguments, **environment)
  assert done.stderr == ""
  lines = done.stdout.splitlines()
  assert len(lines) <= 60
  return done.returncode, lines


def test_a_clean_set_with_its_config_is_0(shapes_folder):
  code, lines = page("--config=shapes", f"--data={shapes_folder}")
  assert code == 0, lines
  starts = [
    "versions",
    "extras",
    "devices",
    "memory",
    "cores",
    "compile cache",
    "shared memory",
    "disk",
    "decodes",
  ]
  assert all(any(line.startswith(start) for line in lines) for start in [*starts, "config", "data", "  val "])
  assert "devices       8 x cpu (no accelerator)" in lines
  assert "  train       32 images of " in "\n".join(lines) and "pictures      45 of 45 opened" in lines
  assert lines[-1] == "errors: 0, warnings: 0, notes: 0"


def test_warnings_are_1(shapes_folder, tmp_path):
  """The validation images are training images."""
  shutil.copytree(shapes_folder, tmp_path / "set")
  file = tmp_path / "set/annotations/instances_train.json"
  shutil.copy(file, file.with_name("instances_val.json"))
  shutil.copytree(tmp_path / "set/train", tmp_path / "set/val", dirs_exist_ok=True)
  code, lines = page(f"--data={tmp_path / 'set'}")
  assert code == 1
  assert any(
    line.startswith("warning       32 images of train are in val too, by content (") for line in lines
  )


def test_what_training_refuses_is_2(shapes_folder, tmp_path):
  code, lines = page("--config=shapes", f"--data={shapes_folder}", "--config.data.max_boxes=1")
  text = " ".join(" ".join(lines).split())
  assert code == 2 and "errors: 1, warnings: 0" in text
  assert "error training refuses the data: config.data.max_boxes=1 is too small" in text
  assert "give --config.data.max_boxes=" in text


def test_no_data_and_no_devices_are_2_on_a_page(tmp_path):
  (tmp_path / "notes.txt").write_text("no data")
  code, lines = page(f"--data={tmp_path}", JAX_PLATFORMS="no_such_platform")
  assert code == 2 and "errors: 2, warnings: 0, notes: 0" in lines
  text = " ".join(" ".join(lines).split())
  assert "JAX finds no devices" in text and "is neither a prepared dataset" in text


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config=nothing"], "there is no such file"),
    (["--config=shapes", "--config.train.epochs=0"], "config.train.epochs=0: must be above 0"),
    (["--format=pdf"], "pdf"),
    (["--pictures=-1"], "--pictures=-1"),
    (["--dta=x"], "dta"),
  ],
)
def test_bad_flags_are_2_in_one_line(flags, words):
  done = iou_det("doctor", *flags)
  assert (done.returncode, done.stdout) == (2, "") and words in done.stderr
  assert done.stderr.startswith("iou-det doctor: ") and done.stderr.count("\n") == 1


def test_prepare_says_it_too(shapes_folder, tmp_path):
  """Of one split what is odd in it, of several also what they share."""
  shutil.copytree(shapes_folder, tmp_path / "set")
  train, val = (tmp_path / f"set/annotations/instances_{split}.json" for split in ("train", "val"))
  coco = json.loads(train.read_text())
  for row in coco["annotations"]:
    x, y, w, h = row["bbox"]
    row["bbox"] = [x, y, x + w, y + h]
  train.write_text(json.dumps(coco))
  one, other = sorted((tmp_path / "set/train").iterdir())[0], sorted((tmp_path / "set/val").iterdir())[0]
  sizes = {i["file_name"]: (i["height"], i["width"]) for i in coco["images"]}
  theirs = {i["file_name"]: (i["height"], i["width"]) for i in json.loads(val.read_text())["images"]}
  one = next(n for n in sorted(sizes) if sizes[n] == theirs[other.name])
  shutil.copy(tmp_path / "set/train" / one, other)
  done = iou_det("prepare", f"--data={tmp_path / 'set'}", "--name=set", f"--data_dir={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert "  error: boxes that seem to be x1 y1 x2 y2 given as x y w h: train" in done.stdout
  assert f"warning: 1 images of train are in val too, by content ({one}); take them out of one" in done.stdout
