"""Backbone files in torchvision's layout, made here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from iou_det.errors import UserError
from iou_det.models.retinanet import RetinaNet
from iou_det.weights.pretrained import from_torch, load_pretrained
from tests.golden.seeded_tensors import seeded_tensor
from tests.models import golden
from tests.tiny import model_section

WIDTH = 8


SETTINGS = {"depth": 18, "width": WIDTH, "fpn_channels": 8, "head_convs": 1}


def variables_of(**options):
  model = RetinaNet(model_section(**SETTINGS | options), num_classes=2)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)


def load(source, **options):
  settings = model_section(**SETTINGS | options, pretrained=str(source))
  return load_pretrained(settings, variables_of(**options))


@pytest.fixture
def tensors():
  """A whole torchvision ResNet-18, an eighth as wide, with its classifier and batch counters."""
  table = golden.names()["resnet18"]["tensors"]
  narrow = lambda size: size * WIDTH // 64 if size % 64 == 0 else size
  return {name: seeded_tensor(name, tuple(map(narrow, shape))) for name, shape in table.items()}


@pytest.fixture
def file(tensors, tmp_path):
  path = tmp_path / "resnet18.safetensors"
  save_file(tensors, path)
  return path


def check(loaded, tensors):
  """The values are where a reader of torchvision's source would look for them; the rest is untouched."""
  params, statistics = loaded["params"]["backbone"], loaded["batch_stats"]["backbone"]
  kernel = params["layer2_0"]["downsample_0"]["kernel"]
  assert kernel.shape == (1, 1, WIDTH, 2 * WIDTH) and kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel[0, 0].T, tensors["layer2.0.downsample.0.weight"][:, :, 0, 0])
  stem = params["conv1"]["kernel"]
  assert stem[2, 5, 1, 3] == tensors["conv1.weight"][3, 1, 2, 5]
  norm, name = params["layer4_1"]["bn2"], "layer4.1.bn2"
  np.testing.assert_array_equal(norm["scale"], tensors[f"{name}.weight"])
  np.testing.assert_array_equal(norm["bias"], tensors[f"{name}.bias"])
  np.testing.assert_array_equal(statistics["layer4_1"]["bn2"]["mean"], tensors[f"{name}.running_mean"])
  np.testing.assert_array_equal(statistics["layer4_1"]["bn2"]["var"], tensors[f"{name}.running_var"])
  before = variables_of()
  assert jax.tree.structure(loaded) == jax.tree.structure(before)
  for part in ("fpn", "classification_head", "regression_head"):
    assert loaded["params"][part] == before["params"][part]


def error(source, **options):
  with pytest.raises(UserError) as raised:
    load(source, **options)
  message = str(raised.value)
  assert "\n" not in message
  return message


# --- tensors ---


def test_safetensors_file(file, tensors):
  check(load(file), tensors)


def test_what_is_not_used_is_counted(file, caplog):
  with caplog.at_level("INFO"):
    load(file)
  assert "100 tensors, 22 not used (classifier and batch counters)" in caplog.text  # 2 of fc, 20 norms


def test_half_precision_files_become_float32(tensors, tmp_path):
  half = {name: x.astype(jnp.bfloat16) for name, x in tensors.items() if x.dtype == np.float32}
  save_file(half, tmp_path / "half.safetensors")
  loaded = load(tmp_path / "half.safetensors")
  scale = loaded["params"]["backbone"]["bn1"]["scale"]
  assert scale.dtype == np.float32
  np.testing.assert_array_equal(scale, half["bn1.weight"].astype(np.float32))


def test_missing_extra_and_misshapen_tensors_are_listed(tensors, tmp_path):
  del tensors["layer3.1.bn1.running_var"]
  tensors["layer1.0.conv2.weight"] = tensors["layer1.0.conv2.weight"][:, :5]
  tensors["layer1.2.conv1.weight"] = np.zeros((8, 8, 3, 3), np.float32)
  save_file(tensors, tmp_path / "bad.safetensors")
  message = error(tmp_path / "bad.safetensors")
  assert "1 missing (layer3.1.bn1.running_var)" in message
  assert "1 of another shape (layer1.0.conv2.weight is (8, 5, 3, 3), not (8, 8, 3, 3))" in message
  assert "1 extra (layer1.2.conv1.weight)" in message


def test_another_depth_lists_all_in_the_log_and_ten_in_the_message(file, caplog):
  message = error(file, depth=34)
  assert "80 missing (layer1.2.bn1.bias, layer1.2.bn1.running_mean, " in message
  assert "and 70 more" in message and "check model.depth" in message
  assert "layer3.5.conv2.weight" in caplog.text


def test_group_norm_models_take_no_batch_norm_weights(file):
  assert "norm='gn'" in error(file, norm="gn")


def test_kernels_of_dense_and_depthwise_layers_are_turned_too():
  """A square dense kernel would fit the wrong way round as well."""
  rng = np.random.default_rng(0)
  tensors = {"dense.weight": rng.normal(size=(3, 3)), "depth.weight": rng.normal(size=(4, 1, 5, 7))}
  variables = {"params": {"dense": {"kernel": np.zeros((3, 3))}, "depth": {"kernel": np.zeros((5, 7, 1, 4))}}}
  loaded = from_torch(tensors, variables, lambda path: f"{next(iter(path))}.weight")["params"]
  x = rng.normal(size=3)
  np.testing.assert_allclose(x @ loaded["dense"]["kernel"], tensors["dense.weight"] @ x, rtol=1e-6)
  np.testing.assert_allclose(
    loaded["depth"]["kernel"][2, 6, 0, 3], tensors["depth.weight"][3, 0, 2, 6], rtol=1e-6
  )


@pytest.mark.parametrize("source", ["nowhere.pth", "no such/model"])
def test_a_source_that_cannot_be_read_is_named(source, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert f"model.pretrained={source!r}: it is not" in error(source)
