"""Foreign detectors against what their own code computed, and files that are not quite such a detector."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.parallel import device_mesh
from iou_det.weights.files import TensorFile
from iou_det.weights.foreign import FORMATS, categories, convert, read_foreign, recognise
from iou_det.weights.load import find_detector
from iou_det.weights.saved import read_saved
from tests.command import iou_det
from tests.golden.seeded_tensors import detector_tensor
from tests.weights import detectors

CLASSES = 3
TOLERANCES = {"logits": 1e-3, "deltas": 1e-4, "anchors": 1e-3, "losses": 1e-4, "scores": 1e-4, "boxes": 0.01}
TABLE = (Category(1, "cat"), Category(2, "dog"), Category(7, "owl"))


def check_parity(key, which, data=None):
  saved = convert(TensorFile(detectors.tensors(key), {}), key)
  found = detectors.compare(saved, key, which, detectors.pictures(which, data))
  assert found.detections >= 300
  assert found.unmatched == 0
  for name, tolerance in TOLERANCES.items():
    assert getattr(found, name) < tolerance, (name, found)


@pytest.mark.parametrize("key", FORMATS)
def test_a_foreign_detector_computes_what_it_did(key):
  check_parity(key, "made")


@pytest.mark.real_data
@pytest.mark.parametrize("key", FORMATS)
def test_a_foreign_detector_computes_what_it_did_on_real_images(key, real_data):
  check_parity(key, "real", real_data)


# --- narrow detectors of the same names ---


def narrow(key, classes=CLASSES):
  """A detector of a quarter of the channels."""
  names = json.loads(str(detectors.golden()[f"{key}/names"]))
  state = {}
  for name, shape in names.items():
    if name.startswith(detectors.OUTPUTS[key]):
      shape = [9 * classes, *shape[1:]]
    shape = [size // 4 if size % 64 == 0 else size for size in shape]
    state[name] = detector_tensor(key, name, tuple(shape))
  if key == "detectron2":
    state["pixel_mean"] = np.array([103.53, 116.28, 123.675], np.float32)[:, None, None]
    state["pixel_std"] = np.ones((3, 1, 1), np.float32)
  return state


def converted(tensors, key, *, others=None, **options):
  return convert(TensorFile(tensors, others or {}), key, **{"annotated": TABLE[:CLASSES], **options})


def error(tensors, key, **options):
  with pytest.raises(UserError) as raised:
    converted(tensors, key, **options)
  message = str(raised.value)
  assert "\n" not in message
  return message


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("key", FORMATS)
def test_a_format_is_known_by_its_names(key):
  assert recognise(narrow(key)) == key


def old_torchvision(tensors):
  """The names of releases before 0.13."""
  names = {n: re.sub(r"(_blocks\.\d)\.0\.", r"\1.", n) for n in tensors}
  names = {n: re.sub(r"conv\.(\d)\.0\.", lambda m: f"conv.{2 * int(m[1])}.", new) for n, new in names.items()}
  assert "head.regression_head.conv.6.bias" in names.values()
  return {names[n]: x for n, x in tensors.items()}


def test_older_names():
  tensors = narrow("torchvision")
  table = (Category(0, "cat"), Category(2, "dog"))
  new = converted(tensors, "torchvision", annotated=table)
  old = converted(old_torchvision(tensors), "torchvision", annotated=table)
  assert_same(new.variables, old.variables)
  assert new.categories == (Category(0, "cat"), Category(1, "N/A"), Category(2, "dog"))
  tensors = narrow("detectron2")
  flat = {name.removeprefix("backbone."): x for name, x in tensors.items()}
  assert flat.keys() != tensors.keys()
  assert_same(converted(tensors, "detectron2").variables, converted(flat, "detectron2").variables)


def test_what_is_not_needed_is_counted(caplog):
  tensors = narrow("detectron2")
  for i in range(5):  # size by size, each in its three ratios (height / width)
    sizes = [2.0 ** (i + 5 + octave / 3) for octave in range(3)]
    half = [(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size in sizes for ratio in (0.5, 1.0, 2.0)]
    tensors[f"anchor_generator.cell_anchors.{i}"] = np.float32([[-w, -h, w, h] for w, h in half])
  with caplog.at_level("INFO"):
    converted(tensors, "detectron2")
  assert "not needed: 5 anchors, 2 pixel mean and std" in caplog.text
  assert f"{len(tensors)} tensors" in caplog.text


def test_other_anchors_of_detectron2_are_refused():
  tensors = narrow("detectron2") | {"anchor_generator.cell_anchors.2": np.full((9, 4), 3.0, np.float32)}
  assert "cell_anchors.2 are not the anchors of the model zoo" in error(tensors, "detectron2")


def test_biases_that_a_v2_head_should_not_have_are_kept():
  tensors = narrow("torchvision_v2")
  name = "head.regression_head.conv.1.0.bias"
  tensors[name] = np.full(64, 7.0, np.float32)
  saved = converted(tensors, "torchvision_v2", annotated=tuple(Category(i, "x") for i in range(CLASSES)))
  head = saved.variables["params"]["regression_head"]
  np.testing.assert_array_equal(head["conv_1"]["bias"], tensors[name])
  np.testing.assert_array_equal(head["conv_0"]["bias"], 0.0)


@pytest.mark.parametrize("key, name, shape", [
  ("mmdetection", "bbox_head.retina_cls.bias", ()), ("mmdetection", "neck.fpn_convs.3.conv.weight", (64,)),
  ("torchvision", "backbone.body.conv1.weight", ()), ("detectron2", "pixel_mean", (2,)),
  ("torchvision_v2", "head.regression_head.conv.0.0.weight", ()),
])  # fmt: skip
def test_tensors_of_no_shape_are_named(key, name, shape):
  assert name in error(narrow(key) | {name: np.ones(shape, np.float32)}, key)


def test_missing_extra_and_misshapen_tensors_are_listed():
  tensors = narrow("mmdetection")
  del tensors["backbone.layer3.1.bn1.running_var"]
  tensors["neck.fpn_convs.4.conv.bias"] = np.zeros(5, np.float32)
  tensors["neck.fpn_convs.5.conv.bias"] = np.zeros(64, np.float32)
  message = error(tensors, "mmdetection")
  assert "1 missing (backbone.layer3.1.bn1.running_var)" in message
  assert "1 of another shape (neck.fpn_convs.4.conv.bias is (5,), not (64,))" in message
  assert "1 extra (neck.fpn_convs.5.conv.bias)" in message
  assert "not the RetinaNet of mmdetection" in message


def without(name):
  return lambda tensors: {n: x for n, x in tensors.items() if not re.search(name, n)}


@pytest.mark.parametrize("key, change, message", [
  ("torchvision", without(r"extra_blocks\.p6"), "it has no tensor backbone.fpn.extra_blocks.p6.weight"),
  ("mmdetection", without(r"layer3\.[12]\."), "has 1 blocks in the third stage"),
  ("mmdetection", lambda t: t | {"bbox_head.retina_reg.bias": np.zeros(60)}, "15 anchors in a cell, not 9"),
  ("mmdetection", lambda t: t | {"bbox_head.retina_cls.bias": np.zeros(25)}, "class output"),
  ("detectron2", lambda t: t | {"pixel_std": np.full((3, 1, 1), 57.0)}, "pixel_std is [57.0, 57.0, 57.0]"),
  ("detectron2", lambda t: t | {"pixel_mean": t["pixel_mean"][::-1]}, "sees other images"),
])  # fmt: skip
def test_another_network_is_refused(key, change, message):
  assert message in error(change(narrow(key)), key)


def test_another_format_is_named():
  assert "looks like mmdetection; --from=torchvision was" in error(narrow("mmdetection"), "torchvision")
  assert "looks like torchvision_v2; --from=torchvision was" in error(narrow("torchvision_v2"), "torchvision")
  assert "looks like torchvision; --from=torchvision_v2 was" in error(narrow("torchvision"), "torchvision_v2")


def test_a_faster_rcnn_is_none(tmp_path):
  names = ["backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.cls_logits.weight"]
  names += ["roi_heads.box_predictor.cls_score.weight"]
  assert recognise(names) is None
  save_file({name: np.zeros(1) for name in names}, tmp_path / "file.safetensors")
  with pytest.raises(
    UserError, match=r"file.safetensors: .*none of torchvision, torchvision_v2, mmdetection"
  ):
    read_foreign(tmp_path / "file.safetensors")
  assert "none of torchvision, torchvision_v2, mmdetection, detectron2" in error(
    dict.fromkeys(names), "torchvision"
  )


def test_caffe_style_is_refused_where_the_file_says_so():
  tensors = narrow("mmdetection")
  assert "Caffe-style" in error(tensors, "mmdetection", others={"meta": {"config": "style='caffe',"}})
  assert "Caffe-style" in error(tensors, "mmdetection", others={"meta": {"cfg": "style='caffe',"}})
  converted(tensors, "mmdetection", others={"meta": {"config": "style='pytorch',"}, "optimizer": {}})


@pytest.mark.parametrize(
  "norm_eps, live, eps", [(None, False, 0), (1e-5, False, 1e-5), (None, True, 1e-5), (1e-3, True, 1e-3)]
)
def test_batch_norm_of_another_eps_is_absorbed(norm_eps, live, eps):
  tensors, name = narrow("torchvision"), "backbone.body.layer2.1.bn1"
  if live:
    tensors[f"{name}.num_batches_tracked"] = np.array(7)
  saved = converted(tensors, "torchvision", annotated=(Category(1, "cat"),), norm_eps=norm_eps)
  x = np.linspace(-3, 3, 32)
  scale, bias, mean, var = (
    tensors[f"{name}.{n}"].astype(np.float64) for n in ("weight", "bias", "running_mean", "running_var")
  )
  params, statistics = (saved.variables[c]["backbone"]["layer2_1"]["bn1"] for c in ("params", "batch_stats"))
  theirs = (x - mean) / np.sqrt(var + eps) * scale + bias
  ours = (x - statistics["mean"]) / np.sqrt(statistics["var"].astype(np.float64) + 1e-5) * params["scale"]
  np.testing.assert_allclose(ours + params["bias"], theirs, rtol=1e-6)
  assert params["scale"].dtype == np.float32
  assert (params["scale"] == tensors[f"{name}.weight"]).all() == (eps == 1e-5)


def test_variances_of_0_need_an_eps():
  tensors = narrow("torchvision")
  tensors["backbone.body.layer2.1.bn2.running_var"][3] = 0
  assert "layer2_1/bn2/var has variances of 0" in error(tensors, "torchvision", annotated=TABLE[:2])


def test_depth_is_counted():
  tensors = narrow("mmdetection")
  for name in [n for n in tensors if n.startswith("backbone.layer3.5.")]:
    for block in range(6, 23):
      tensors[name.replace("layer3.5.", f"layer3.{block}.")] = tensors[name]
  config = converted(tensors, "mmdetection").config
  assert (config.model.depth, config.model.width, config.model.fpn_channels) == (101, 16, 64)
  assert config.model.head_convs == 4


def test_categories():
  assert categories("detectron2", 3, TABLE) == TABLE
  for key, classes, annotated, message in (
    ("detectron2", 3, (), "it has 3 classes, COCO's are 80; give the --annotations"),
    ("torchvision_v2", 80, (), "it has 80 classes, COCO's are 91"),
    ("detectron2", 3, TABLE[:2], "3 classes, the annotations have 2 categories"),
    ("torchvision", 3, TABLE, "ids 1 to 7, it has the labels 0 to 2"),
  ):
    with pytest.raises(UserError, match=message):
      categories(key, classes, annotated)


@pytest.mark.parametrize("key", FORMATS)
def test_the_table_of_coco(key):
  by_id = key.startswith("torchvision")
  table = categories(key, 91 if by_id else 80, ())
  named = {c.id: c.name for c in table if c.name not in ("N/A", "__background__")}
  assert len(named) == 80 and (named[1], named[18], named[90]) == ("person", "dog", "toothbrush")
  if by_id:
    assert [c.id for c in table] == list(range(91))
  else:
    assert table[16] == Category(18, "dog")


# --- the command ---


def command(*arguments):
  return iou_det("import-weights", *arguments)


def test_the_command(tmp_path):
  tensors, file, out = narrow("mmdetection"), tmp_path / "file.safetensors", tmp_path / "out"
  save_file(tensors, file)
  annotations = {"images": [{"id": 1}], "annotations": [{"id": 1}], "categories": []}
  annotations["categories"] = [{"id": c.id, "name": c.name} for c in reversed(TABLE)]
  (tmp_path / "a.json").write_text(json.dumps(annotations))
  done = command("--from=mmdetection", file, f"--out={out}", f"--annotations={tmp_path / 'a.json'}")
  assert done.returncode == 0, done.stderr
  assert f"wrote {out / 'detector.safetensors'}: 3 classes" in done.stdout
  assert f"3 classes: {len(tensors)} tensors, not needed: 53 batch counters" in done.stderr
  saved, same = read_saved(out / "detector.safetensors"), converted(tensors, "mmdetection")
  assert_same(saved.variables, same.variables)
  assert saved.categories == TABLE and saved.config.to_dict() == same.config.to_dict()
  stored = find_detector(out)
  _, step = stored.read(device_mesh(1, jax.devices()[:1]))
  assert (stored.categories, step) == (TABLE, 0)


def test_a_foreign_file_is_a_source_of_load_detector(tmp_path):
  tensors = narrow("mmdetection", classes=80)
  save_file(tensors, tmp_path / "file.safetensors")
  stored = find_detector(tmp_path / "file.safetensors")
  assert stored.categories[16] == Category(18, "dog")
  variables, _ = stored.read(device_mesh(1, jax.devices()[:1]))
  assert_same(jax.device_get(variables), converted(tensors, "mmdetection", annotated=()).variables)
  (tmp_path / "text.safetensors").write_text("text")
  with pytest.raises(UserError, match="not a whole safetensors file"):
    find_detector(tmp_path / "text.safetensors")
