"""Exported programs, run in a second process that cannot import the package, against `Detector.step`."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.data import pipeline
from iou_det.data.pipeline import Stack, picture_row
from iou_det.data.source import Category
from iou_det.detector import Detector
from iou_det.errors import UserError
from iou_det.network import make_model
from iou_det.parallel import device_mesh
from iou_det.weights import program
from iou_det.weights.onnx import to_onnx
from iou_det.weights.stablehlo import to_stablehlo
from tests.tiny import tinier_config

CATEGORIES = tuple(Category(7 * i + 1, f"thing {i}") for i in range(3))
SIZES = {  # of images [batch, height, width, 3]
  "landscape": (3, 48, 60, 3),
  "portrait": (1, 96, 64, 3),
  "beyond the canvas": (1, 131, 200, 3),  # of 64x96
}

# First argument: the file; images from stdin, detections to stdout. Only the named packages may be found.
BLOCKER = """
import sys

class Blocker:
  def find_spec(self, name, *_):
    if name.split(".")[0] in ("iou_det", "flax", "ml_collections", "orbax", "jax" if ONNX else "onnx"):
      raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import numpy as np
"""
RUN_STABLEHLO = """
import jax

exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
names = ("boxes", "scores", "labels", "valid")
run = lambda images: dict(zip(names, exported.call(images)))
"""
RUN_ONNX = """
import json
import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options)
about = session.get_modelmeta().custom_metadata_map
assert json.loads(about["categories"])[1] == {"label": 1, "id": 8, "name": "thing 1"}, about
assert about["model_card"] == "# a card"
names = ("boxes", "scores", "labels", "valid")
run = lambda images: dict(zip(names, session.run(names, {"images": images})))
"""
LOOP = """
assert not any(name.split(".")[0] in ("iou_det", "flax") for name in sys.modules)
found = {}
for name, images in np.load(sys.argv[2]).items():
  found |= {f"{name}/{key}": np.asarray(value) for key, value in run(images).items()}
np.savez(sys.argv[3], **found)
"""


def detector(iou_branch=False, **evaluation):
  config = tinier_config("none")
  config.model.iou_branch = iou_branch
  config.model.min_level = 4
  config.eval.update(score_threshold=0.05, candidates_per_level=40, max_detections=30, **evaluation)
  model = make_model(config, len(CATEGORIES))
  variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 64, 96, 3)))
  variables = jax.tree.map(np.array, variables)
  for head, factor in (("classification_head", 60.0), ("regression_head", 10.0)):
    variables["params"][head]["output"]["kernel"] *= factor  # scores far apart, boxes that move
  if iou_branch:
    variables["params"]["regression_head"]["iou"]["kernel"] *= 60.0
  return Detector(config, model, device_mesh(1, jax.devices()[:1]), CATEGORIES, variables)


def in_another_process(script, content, images, tmp_path):
  (tmp_path / "program").write_bytes(content)
  np.savez(tmp_path / "images.npz", **images)
  paths = [str(tmp_path / name) for name in ("program", "images.npz", "found.npz")]
  # -I: neither PYTHONPATH nor this folder; the paths of installed packages are those of this process.
  done = subprocess.run([sys.executable, "-I", "-c", script, *paths], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return np.load(paths[2])


def assert_same(detector, images, found, *, score, pixels):
  """What a program found is what the detector finds in the same images, given by its own pipeline."""
  canvas = tuple(detector.config.data.canvas)
  total = 0
  for name, batch in images.items():
    portrait = batch.shape[1] > batch.shape[2]
    rows = Stack(canvas)([picture_row(image, canvas, portrait) for image in batch])
    expected = jax.device_get(detector.step(detector.variables, rows, portrait))
    np.testing.assert_array_equal(found[f"{name}/valid"], expected.valid, name)
    np.testing.assert_array_equal(found[f"{name}/labels"], expected.labels, name)
    np.testing.assert_allclose(found[f"{name}/scores"], expected.scores, atol=score, rtol=0, err_msg=name)
    np.testing.assert_allclose(found[f"{name}/boxes"], expected.boxes, atol=pixels, rtol=0, err_msg=name)
    assert {"boxes": "float32", "scores": "float32", "labels": "int32", "valid": "bool"} == {
      key: str(found[f"{name}/{key}"].dtype) for key in ("boxes", "scores", "labels", "valid")
    }
    total += expected.valid.sum()
  assert total >= 5 * len(images), "too few detections to compare"


def pictures(names):
  rng = np.random.default_rng(0)
  return {name: rng.integers(0, 256, SIZES[name], dtype=np.uint8) for name in names}


def test_stablehlo_finds_what_the_detector_finds(tmp_path):
  ours, images = detector(), pictures(SIZES)
  content = to_stablehlo(ours.config, ours.model, ours.variables)
  script = "ONNX = False\n" + BLOCKER + RUN_STABLEHLO + LOOP
  assert_same(ours, images, in_another_process(script, content, images, tmp_path), score=1e-5, pixels=1e-3)
  weights = sum(value.nbytes for value in jax.tree.leaves(ours.variables))
  assert weights < len(content) < 1.5 * weights, "the weights should be in the file once"


def test_stablehlo_has_the_settings_of_evaluation(tmp_path):
  ours = detector(nms="linear", class_agnostic=True, tta_flip=True, iou_branch=True)
  images = pictures(["portrait"])
  exported = jax.export.deserialize(bytearray(to_stablehlo(ours.config, ours.model, ours.variables)))
  found = dict(zip(("boxes", "scores", "labels", "valid"), exported.call(images["portrait"]), strict=True))
  found = {f"portrait/{key}": np.asarray(value) for key, value in found.items()}
  assert_same(ours, images, found, score=1e-5, pixels=1e-3)


@pytest.mark.onnx
@pytest.mark.parametrize(
  "settings", [{}, {"class_agnostic": True, "tta_flip": True, "nms": "none", "iou_branch": True}]
)
def test_onnx_finds_what_the_detector_finds(settings, tmp_path):
  ours = detector(**settings)
  images = pictures(["portrait", "beyond the canvas"])
  content = to_onnx(ours.config, ours.model, ours.variables, CATEGORIES, "# a card")
  script = "ONNX = True\n" + BLOCKER + RUN_ONNX + LOOP
  assert_same(ours, images, in_another_process(script, content, images, tmp_path), score=1e-4, pixels=0.05)


def test_onnx_refuses_soft_nms():
  ours = detector(nms="gaussian")
  with pytest.raises(UserError, match=r"config.eval.nms='gaussian' cannot be written as ONNX"):
    to_onnx(ours.config, ours.model, ours.variables, CATEGORIES)


@pytest.mark.parametrize("size", [(20, 31), (65, 97), (1000, 40), (301, 200)])
def test_images_beyond_the_canvas_are_shrunk_as_the_pipeline_does(size):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
  canvas = (96, 64) if size[0] > size[1] else (64, 96)
  expected = pipeline.fit(image, canvas)
  pixels, fitted = program.fit(jnp.asarray(image[None]), jnp.array(size), canvas)
  assert pixels.shape == (1, *canvas, 3) and tuple(fitted.tolist()) == expected.shape[:2]
  height, width = expected.shape[:2]
  difference = np.abs(np.asarray(pixels[0, :height, :width]) - expected)
  assert difference.max() <= 1 and difference.mean() < 0.01  # a tie may be rounded the other way
  assert not pixels[0, height:].any() and not pixels[0, :, width:].any()
