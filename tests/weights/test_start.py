"""Training that starts from a whole detector."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from iou_det.config_args import find_config, read_config_file
from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.network import make_model
from iou_det.ops.anchors import by_anchor
from iou_det.parallel import device_mesh
from iou_det.training.loop import train
from iou_det.training.step import create_state
from iou_det.weights.load import load_detector, read_detector
from tests.tiny import tiny_config
from tests.weights.test_foreign import narrow

NAMES = ("triangle", "rectangle", "star", "ellipse")


def variables(config, names):
  """A fresh state's, for classes of these names, on two devices."""
  categories = tuple(Category(10 + i, name) for i, name in enumerate(names))
  mesh = device_mesh(8, jax.devices()[:2])
  state, _ = create_state(config, make_model(config, len(names)), 4, mesh, categories)
  return jax.device_get(state.variables)


@pytest.fixture
def config(reference, shapes_folder):
  config = tiny_config(shapes_folder)
  config.model.init = str(reference[0])
  return config


def test_same_classes_in_another_order_take_everything(config, reference):
  """Its logits are the detector's, by name; what the order of the outputs is, only the network says."""
  detector = load_detector(reference[0])
  ours = variables(config, NAMES[::-1][:3])
  images = jnp.float32(np.random.default_rng(0).normal(size=(1, 64, 96, 3)))
  expected, deltas = detector.model.apply(jax.device_get(detector.variables), images)
  logits, same_deltas = make_model(config, 3).apply(ours, images)
  expected = by_anchor(expected, len(detector.categories))[..., [3, 2, 1]]
  np.testing.assert_allclose(by_anchor(logits, 3), expected, atol=1e-5)
  np.testing.assert_allclose(by_anchor(same_deltas, 4), by_anchor(deltas, 4), atol=1e-5)


def test_other_classes_get_a_fresh_last_layer(config, reference, caplog):
  theirs = read_detector(reference[0]).variables["params"]
  with caplog.at_level(logging.INFO):
    ours = variables(config, ("star", "cell"))["params"]
  assert "fresh for 2 classes (cell: not known to it)" in caplog.text
  config.model.init = ""
  fresh = variables(config, ("star", "cell"))["params"]
  last = ours["classification_head"].pop("output")
  jax.tree.map(np.testing.assert_array_equal, last, fresh["classification_head"]["output"])
  del theirs["classification_head"]["output"]
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_another_network_is_refused_with_the_flags_that_make_it_this_one(config):
  config.model.update(head_norm="gn", p7_relu=True)
  config.anchors.scale = 3.0
  with pytest.raises(UserError, match="is of another network or other anchors") as refused:
    variables(config, NAMES)
  flags = ("--config.model.head_norm=none", "--config.model.p7_relu=False", "--config.anchors.scale=4.0")
  assert all(flag in str(refused.value) for flag in flags)
  config.model.update(head_norm="none", p7_relu=False)
  config.anchors.scale = 4.0
  variables(config, NAMES)
  config.model.init = "nothing"
  with pytest.raises(UserError, match="nothing: there is no such file or folder"):
    variables(config, NAMES)


def test_fine_tuning_by_the_shipped_config_and_resuming_without_the_source(
  reference, shapes_folder, tmp_path, caplog
):
  source = tmp_path / "source"
  shutil.copytree(reference[0], source)
  config = read_config_file(find_config("finetune"), f"init={source},epochs=1,lr=0.01")
  assert config.model.depth == 18 and config.eval.batch_size == 8 and config.data.short == 64
  config.data.update(path=str(shapes_folder), mean=(0.0, 0.0, 0.0))
  config.train.batch_size = 8
  devices = jax.devices()[:1]
  with caplog.at_level(logging.INFO):
    metrics = train(config, tmp_path / "tuned", devices=devices)
  assert "of 4 of its 4 classes, by name" in caplog.text
  assert "saw its images otherwise" in caplog.text and "mean: [123.675" in caplog.text
  shutil.rmtree(source)
  assert train(config, tmp_path / "tuned", devices=devices)["step"] == metrics["step"] == 4
  with pytest.raises(UserError, match="init is missing; give a training run's folder"):
    read_config_file(find_config("finetune"))


def test_a_foreign_group_norm_detector_is_a_start(tmp_path):
  """torchvision's V2, as its file is: 91 outputs, of which the data's two classes are taken."""
  tensors = narrow("torchvision_v2", classes=91)
  save_file(tensors, tmp_path / "v2.safetensors")
  config = read_config_file(find_config("finetune"), f"init={tmp_path / 'v2.safetensors'}")
  assert config.loss.localization == "giou" and config.model.head_norm == "gn"
  ours = variables(config, ("dog", "person"))["params"]["classification_head"]
  theirs = lambda name: tensors[f"head.classification_head.{name}"]
  np.testing.assert_array_equal(ours["norm_3"]["scale"], theirs("conv.3.1.weight"))
  by_anchor = theirs("cls_logits.bias").reshape(9, 91)
  np.testing.assert_array_equal(ours["output"]["bias"].reshape(9, 2), by_anchor[:, [18, 1]])
