"""`load_detector`: called on arrays and files a detector finds what evaluation finds, whatever its source."""

import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import iou_det
from iou_det.data import images as image_files
from iou_det.data import open_dataset
from iou_det.data.pipeline import decode_image
from iou_det.errors import UserError
from iou_det.weights.load import load_detector, read_detector
from iou_det.weights.saved import write_saved
from tests.command import iou_det as iou_det_command
from tests.same import assert_same_detections


@pytest.fixture(scope="module")
def detector(reference):
  return load_detector(reference[0])


@pytest.fixture(scope="module")
def pictures(detector):
  """Those of the val split, three of them turned to portrait: ids, pixels."""
  source = open_dataset(detector.config.data.path, "val")
  pixels = [decode_image(source[i]) for i in range(len(source))]
  return [p.swapaxes(0, 1) if i in (2, 5, 6) else p for i, p in enumerate(pixels)]


@pytest.fixture(scope="module")
def found(detector, pictures):
  return detector(pictures)


def same(a, b):
  assert_same_detections(a.to_coco(1), b.to_coco(1))


def test_called_on_arrays_it_finds_what_evaluation_finds(detector, pictures, found):
  source = open_dataset(detector.config.data.path, "val")
  expected = list(detector.detect(source).rows())
  for i, detections in enumerate(found):
    if pictures[i].shape == (64, 96, 3):
      image_id = int(source.annotations.image_id[i])
      assert len(detections)
      assert_same_detections(detections.to_coco(image_id), [r for r in expected if r["image_id"] == image_id])


def test_what_is_returned(detector, pictures, found):
  ids = {c.id: c.name for c in detector.categories}
  assert detector.classes == tuple(ids.values()) == ("triangle", "rectangle", "star", "ellipse")
  assert detector.params is detector.variables["params"] and detector.config.model.depth == 18
  for pixels, d in zip(pictures, found, strict=True):
    boxes, scores, labels = d.to_arrays()
    assert boxes.shape == (len(d), 4) and boxes.dtype == scores.dtype == np.float32
    assert labels.dtype == np.int32 and d.category_ids.dtype == np.int64
    assert (np.diff(scores) <= 0).all() and (scores > 0).all()
    assert (boxes >= 0).all() and (boxes <= [*pixels.shape[1::-1]] * 2).all()
    assert d.names == [ids[i] for i in d.category_ids] == [detector.classes[k] for k in labels]


def test_two_programs_for_images_of_any_sizes(detector, pictures, found):
  compiled = detector.step._cache_size()
  rng = np.random.default_rng(0)
  sizes = [(1, 1), (3, 500), (700, 20), (64, 96), (333, 77)]
  odd = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  for pixels, d in zip(odd, detector(odd), strict=True):
    assert (d.boxes <= [*pixels.shape[1::-1]] * 2).all()
  detector(pictures[0])
  detector(pictures * 3)
  assert detector.step._cache_size() == compiled


def test_order_and_company_do_not_matter(detector, pictures, found):
  """Many of one orientation before one of the other, and a single image instead of a list."""
  landscape, portrait = pictures[0], pictures[2]
  many = detector([portrait, *[landscape] * 40, portrait])
  for d, expected in zip(many, [found[2], *[found[0]] * 40, found[2]], strict=True):
    same(d, expected)
  same(detector(landscape), found[0])
  assert detector([]) == []


def test_files_are_read_as_arrays_are_and_decoded_once(detector, pictures, found, tmp_path, monkeypatch):
  paths = []
  for i in (0, 2):
    paths.append(tmp_path / f"{i}.png")
    cv2.imwrite(str(paths[-1]), pictures[i][..., ::-1])
  for d, i in zip(detector([str(paths[0]), paths[1]]), (0, 2), strict=True):
    same(d, found[i])
  decoded, decode = [], image_files.decode
  monkeypatch.setattr(image_files, "decode", lambda *a: decoded.append(a) or decode(*a))
  same(detector(paths[0]), found[0])
  assert len(decoded) == 1


def test_grey_becomes_three_channels_and_alpha_is_left_out(detector, pictures):
  grey = pictures[0].mean(axis=-1).astype(np.uint8)
  three = detector(np.stack([grey] * 3, axis=-1))
  same(detector(grey), three)
  same(detector(grey[..., None]), three)
  same(detector(np.dstack([grey, grey, grey, 255 - grey])), three)


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (np.zeros((4, 4, 3)), "has float64 values; give RGB as uint8"),
    (np.zeros((4, 4, 3), np.uint16), "has uint16 values"),
    (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
    (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
    (np.zeros((2, 4, 4, 3), np.uint8), "several images as a list"),
    ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32)], "image 1 has float32 values"),
    (np.array(3, np.uint8), r"shape \(\)"),
    ("nothing.jpg", "nothing.jpg: there is no such file"),
  ],
)
def test_what_is_no_image_is_refused(detector, image, message):
  with pytest.raises(UserError, match=message):
    detector(image)


def test_damaged_files_are_refused_by_name(detector, tmp_path):
  whole = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
  for name, data in {"cut.jpg": whole[:200], "text.jpg": b"text", "empty.png": b""}.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
      detector([tmp_path / name])


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory):
  path = tmp_path_factory.mktemp("exported") / "shapes.safetensors"
  write_saved(path, read_detector(reference[0]))
  return path


def test_an_exported_file_is_the_same_detector(detector, exported, pictures, found, reference):
  again = iou_det.load_detector(exported)
  assert (again.categories, again.trained_steps) == (detector.categories, 8)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(again.variables), jax.device_get(detector.variables)
  )
  config = again.config.to_dict()
  assert config.pop("data") | {"path": detector.config.data.path} == detector.config.to_dict()["data"]
  assert config == {k: v for k, v in detector.config.to_dict().items() if k != "data"}
  for a, b in zip(again(pictures), found, strict=True):
    same(a, b)


def test_a_file_says_what_it_is_to_a_program_that_knows_only_safetensors(exported, reference):
  with safe_open(exported, "numpy") as file:
    metadata, names = file.metadata(), set(file.keys())
  assert "params/backbone/conv1/kernel" in names
  assert json.loads(metadata["categories"])[0] == {"id": 1, "name": "triangle"}
  assert json.loads(metadata["config"])["data"]["path"] == "", "a path of this machine in a file to share"
  assert str(reference[0].parent) not in str(metadata)


def test_eval_predict_and_export_take_a_file(exported, reference, shapes_folder, tmp_path):
  def run(*argv):
    done = iou_det_command(*argv)
    assert done.returncode == 0, done.stderr
    return done.stdout

  copy = tmp_path / "copy.safetensors"
  assert "4 classes, step 8" in run("export", f"--workdir={exported}", f"--out={copy}")
  jax.tree.map(np.testing.assert_array_equal, *(read_detector(f).variables for f in (copy, exported)))
  refused = iou_det_command("eval", f"--workdir={copy}")
  assert refused.returncode == 2 and "names no data of its own; give --data=" in refused.stderr
  run("eval", f"--workdir={copy}", f"--data={shapes_folder}", "--split=val")
  ours = json.loads((reference[0] / "eval/val/detections.json").read_text())
  written = tmp_path / "copy" / "eval" / f"{shapes_folder.name}_val" / "detections.json"
  assert_same_detections(json.loads(written.read_text()), ours)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda data: data[: len(data) // 2], "not a whole safetensors file"),
    (lambda data: b"", "not a whole safetensors file"),
    (lambda data: b"text " * 100, "not a whole safetensors file"),
  ],
)
def test_a_damaged_file_is_refused(exported, tmp_path, damage, message):
  path = tmp_path / "damaged.safetensors"
  path.write_bytes(damage(exported.read_bytes()))
  with pytest.raises(UserError, match=message):
    load_detector(path)


def test_sources_that_are_none(reference, exported, tmp_path):
  with pytest.raises(UserError, match="there is no such file or folder; give a training run's folder"):
    load_detector(tmp_path / "nothing")
  with pytest.raises(UserError, match="not a training run"):
    load_detector(tmp_path)
  with pytest.raises(UserError, match="holds one detector, not the checkpoints of a run"):
    load_detector(exported, "best")
  with pytest.raises(UserError, match="batch_size=0: must be 1 or more"):
    load_detector(exported, batch_size=0)
  with pytest.raises(
    UserError, match=r"eval.batch_size \(--batch_size\)=3 is not divisible by the 8 devices"
  ):
    load_detector(exported, batch_size=3)
  with safe_open(exported, "numpy") as file:
    metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
  del metadata["crc32"]  # as older files
  del tensors["params/fpn/inner_5/bias"]
  save_file(tensors, tmp_path / "other.safetensors", metadata)
  with pytest.raises(UserError, match="holds other arrays than its config describes"):
    load_detector(tmp_path / "other.safetensors")


USER = """
from pathlib import Path

import numpy as np

from iou_det import Detector, ImageDetections, load_detector

detector: Detector = load_detector(Path("runs/demo"), "best", batch_size=8)
one: ImageDetections = detector(np.zeros((4, 4, 3), np.uint8))
several: list[ImageDetections] = detector(["a.jpg", "b.jpg"])
names: list[str] = [name for found in several for name in found.names]
widths: float = float((one.boxes[:, 2] - one.boxes[:, 0]).sum())
print(detector.classes, names, widths, one.to_coco(image_id=7), len(one))
"""


def test_a_user_s_script_passes_mypy_strict(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(USER)
  command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", str(script)]
  done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
  assert done.returncode == 0, done.stdout
  script.write_text(USER.replace("detector(np.zeros", "detector.nothing(np.zeros"))
  done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
  assert '"Detector" has no attribute "nothing"' in done.stdout, "mypy does not see the package's types"


@pytest.mark.parametrize(
  "damage",
  [{"config": None}, {"config": "{"}, {"config": "[]"}, {"categories": "[1]"}, {"step": "x"}, "depth"],
  ids=str,
)
def test_damaged_metadata_are_one_line(exported, tmp_path, damage):
  with safe_open(exported, "numpy") as file:
    metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
  if damage == "depth":
    config = json.loads(metadata["config"])
    config["model"]["depth"] = "much"
    damage = {"config": json.dumps(config)}
  metadata = {k: v for k, v in (metadata | damage).items() if v is not None}
  save_file(tensors, tmp_path / "damaged.safetensors", metadata)
  with pytest.raises(
    UserError, match=r"damaged.safetensors: its metadata are damaged \(.*\); export it again"
  ):
    load_detector(tmp_path / "damaged.safetensors")


def test_a_step_may_be_a_number(reference):
  assert load_detector(reference[0], 4).trained_steps == 4
