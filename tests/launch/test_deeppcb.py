"""The DeepPCB converter on a small made clone, and on real annotations put back into the clone's layout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iou_det.data import open_dataset
from iou_det.errors import UserError
from launch.deeppcb import CLASSES, convert
from tests.data.coco_files import picture

ROOT = Path(__file__).parents[2]


def write_clone(root, splits):
  """The repository's layout: splits = {listing: {id: (image bytes, [(x1, y1, x2, y2, class), ...])}}."""
  data = root / "PCBData"
  for listing, images in splits.items():
    lines = []
    for name, (image, boxes) in images.items():
      group = f"group{name[:5]}/{name[:5]}"
      (data / group).mkdir(parents=True, exist_ok=True)
      (data / f"{group}_not").mkdir(exist_ok=True)
      (data / group / f"{name}_test.jpg").write_bytes(image)
      (data / group / f"{name}_temp.jpg").write_bytes(b"the template without defects")
      (data / f"{group}_not" / f"{name}.txt").write_text("".join(f"{' '.join(map(str, b))}\n" for b in boxes))
      lines.append(f"{group}/{name}.jpg {group}_not/{name}.txt\n")
    (data / listing).write_text("".join(lines))
  return root


def made(root):
  return write_clone(
    root,
    {
      "trainval.txt": {
        "20085000": (picture(64, 80), [(1, 2, 31, 42, 3), (5, 5, 9, 8, 6)]),
        "00041000": (picture(64, 80, 1), []),
      },
      "test.txt": {"20085999": (picture(64, 80, 2), [(10, 20, 30, 60, 1)])},
    },
  )


def test_converts_the_layout_of_the_repository(tmp_path):
  clone = made(tmp_path / "clone")
  assert convert(clone, tmp_path / "pcb") == {"train": (2, 2), "test": (1, 1)}
  train, test = open_dataset(tmp_path / "pcb", "train"), open_dataset(tmp_path / "pcb", "test")
  assert [(c.id, c.name) for c in train.categories] == list(enumerate(CLASSES, 1))
  assert [(r.image_id, r.file_name, r.height, r.width) for r in (train[0], train[1], test[0])] == [
    (20085000, "20085000_test.jpg", 64, 80),
    (41000, "00041000_test.jpg", 64, 80),
    (20085999, "20085999_test.jpg", 64, 80),
  ]
  assert train[0].boxes.tolist() == [[1, 2, 31, 42], [5, 5, 9, 8]] and train[0].labels.tolist() == [2, 5]
  assert train[0].area.tolist() == [1200, 12] and test[0].annotation_id.tolist() == [3]
  assert train[0].image == picture(64, 80)
  with pytest.raises(UserError, match="pcb exists already"):
    convert(clone, tmp_path / "pcb")


@pytest.mark.parametrize(
  "file, text, message",
  [
    ("trainval.txt", "a b c\n", "trainval.txt, line 1: 'a b c' is not 'groupG/G/ID.jpg"),
    ("trainval.txt", "g/1.jpg g/1.txt\n", "1_test.jpg does not exist or is not a JPEG"),
    ("group20085/20085_not/20085000.txt", "1 2 3 4 7\n", "line 1: '1 2 3 4 7' is not"),
    ("group20085/20085_not/20085000.txt", "\n1 2 3 4.5 6\n", "line 2: '1 2 3 4.5 6' is not"),
    ("group20085/20085_not/20085000.txt", "9 2 3 4 6\n", "line 1: '9 2 3 4 6' is not"),
  ],
)
def test_broken_clones_are_refused_and_leave_nothing_to_trust(tmp_path, file, text, message):
  clone = made(tmp_path / "clone")
  (clone / "PCBData" / file).write_text(text)
  with pytest.raises(UserError) as error:
    convert(clone, tmp_path / "pcb")
  assert message in str(error.value) and not (tmp_path / "pcb").exists()
  shutil.rmtree(clone)
  convert(made(clone), tmp_path / "pcb")  # what the failed run left does not matter


def as_tuple(a):
  return (a["image_id"], a["category_id"], *a["bbox"], a["area"])


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"trainval.txt does not exist; give a complete clone"):
    convert(tmp_path, tmp_path / "pcb")


def test_the_script_clones_converts_and_cleans_up(tmp_path):
  clone = made(tmp_path / "clone")
  git = lambda *a: subprocess.run(
    ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(clone), *a],
    check=True,
    capture_output=True,
  )
  git("init", "-q")
  git("add", ".")
  git("commit", "-qm", "x")
  scratch = tmp_path / "scratch"
  scratch.mkdir()
  env = os.environ | {
    "DEEPPCB_REPOSITORY": f"file://{clone}",
    "TMPDIR": str(scratch),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
  }
  command = ["bash", str(ROOT / "launch" / "get_deeppcb.sh"), str(tmp_path / "data" / "pcb")]
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout == "train: 2 images, 2 boxes\ntest: 1 images, 1 boxes\n"
  assert len(open_dataset(tmp_path / "data" / "pcb", "train")) == 2 and not list(scratch.iterdir())
  again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert again.returncode == 2 and "exists already" in again.stderr


@pytest.mark.real_data
def test_real_annotations_survive_the_way_there_and_back(real_data, tmp_path):
  original, splits, header = {}, {}, picture(640, 640)[:2000]
  for split, listing in (("train", "trainval.txt"), ("test", "test.txt")):
    coco = json.loads((real_data / "deeppcb" / "annotations" / f"instances_{split}.json").read_text())
    original[split] = {as_tuple(a) for a in coco["annotations"]}
    boxes = {image["id"]: [] for image in coco["images"]}
    for a in coco["annotations"]:
      x, y, w, h = a["bbox"]
      boxes[a["image_id"]].append((x, y, x + w, y + h, a["category_id"]))
    splits[listing] = {
      i["file_name"].removesuffix("_test.jpg"): (header, boxes[i["id"]]) for i in coco["images"]
    }
  convert(write_clone(tmp_path / "clone", splits), tmp_path / "pcb")
  for split, counts in (("train", (1000, 6873)), ("test", (500, 3140))):
    coco = json.loads((tmp_path / "pcb" / "annotations" / f"instances_{split}.json").read_text())
    assert (len(coco["images"]), len(coco["annotations"])) == counts
    assert {as_tuple(a) for a in coco["annotations"]} == original[split]
