"""The network against torchvision's outputs and parameter tables, by identities and by shapes."""

import functools
import importlib
import math
from pathlib import Path

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det import models
from iou_det.forms import Forms
from iou_det.models import resnet
from iou_det.models.fpn import FPN, upsample
from iou_det.models.layers import max_pool, max_pool_of_blocks
from iou_det.models.resnet import LAYOUT, ConvNorm, ResNet, patches, stem_convolution
from iou_det.models.retinanet import RetinaNet, trainable_mask
from iou_det.ops.anchors import anchors, by_anchor, level_shapes
from iou_det.weights.pretrained import from_torch
from tests.golden.seeded_tensors import seeded_images, seeded_tensor
from tests.models import golden
from tests.tiny import model_section

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # for tests that compile longer than they run
TINY = {"depth": 18, "width": 4, "fpn_channels": 8, "head_convs": 1}


def tiny(**options):
  return RetinaNet(model_section(**TINY | options), num_classes=2)


def shapes_of(model, height=64, width=64):
  return jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  )


@functools.cache
def seeded(**options):
  """A tiny model, seeded variables (drawing them without JAX needs no compilation) and an image."""
  model = tiny(**options)

  def draw(path, value):
    name = models.backbone_class(model.settings.backbone).torch_name(key.key for key in path[1:])
    if value.ndim == 1:
      return seeded_tensor(name, value.shape)
    return seeded_tensor(name, tuple(value.shape[axis] for axis in (3, 2, 0, 1))).transpose(2, 3, 1, 0)

  return model, jax.tree_util.tree_map_with_path(draw, shapes_of(model)), jnp.asarray(seeded_images(40, 72))


# --- against torchvision ---


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_backbone_has_torchvisions_tensors(depth):
  table = golden.names()[f"resnet{depth}"]
  shapes = shapes_of(ResNet(model_section(depth=depth)))
  ours = {}
  for path, value in jax.tree_util.tree_leaves_with_path(shapes):
    order = (3, 2, 0, 1) if value.ndim == 4 else range(value.ndim)
    ours[ResNet.torch_name(key.key for key in path[1:])] = [value.shape[axis] for axis in order]
  assert ours == {n: s for n, s in table["tensors"].items() if golden.is_backbone_weight(n)}
  classifier = math.prod(table["tensors"]["fc.weight"]) + 1000
  assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == table["parameters"] - classifier


def test_retinanet_has_as_many_parameters_as_torchvisions():
  params = shapes_of(RetinaNet(model_section(depth=50, p6_from="p5"), num_classes=91))["params"]
  assert sum(x.size for x in jax.tree.leaves(params)) == golden.names()["retinanet_resnet50_fpn"]


@pytest.mark.parametrize(
  "body, p6_from, size, every", [("resnet18", "c5", (96, 128), 4), ("resnet50", "p5", (72, 104), 32)]
)
def test_every_map_equals_torchvisions(body, p6_from, size, every):
  depth = int(body.removeprefix("resnet"))
  model = RetinaNet(model_section(depth=depth, fpn_channels=32, p6_from=p6_from, p7_relu=True), num_classes=5)
  variables = from_torch(golden.detector_tensors(body, p6_from), shapes_of(model), ResNet.torch_name)

  @jax.jit
  def run(variables, images):
    wanted = lambda module, _: isinstance(module, ResNet | FPN)
    return model.apply(variables, images, capture_intermediates=wanted, mutable=["intermediates"])

  (logits, deltas), state = run(variables, seeded_images(*size))
  maps = {part: state["intermediates"][part]["__call__"][0] for part in ("backbone", "fpn")}
  ours = {f"c{level}": x[..., ::every] for level, x in enumerate(maps["backbone"][1:], start=3)}
  ours |= {f"p{level}": x for level, x in enumerate(maps["fpn"], start=3)}
  ours |= {"logits": by_anchor(logits, 5), "deltas": by_anchor(deltas, 4)}
  theirs = {n.removeprefix(f"{p6_from}_"): x for n, x in golden.outputs().items() if n.startswith(p6_from)}
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    np.testing.assert_allclose(x, theirs[name], rtol=0, atol=1e-4, err_msg=name)


# --- shapes ---


@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(
  st.integers(1, 200), st.integers(1, 200), st.integers(2, 5), st.integers(5, 7), st.booleans()
)
def test_one_prediction_for_each_anchor_of_any_size(height, width, min_level, max_level, patchify):
  stem = "patchify" if patchify else "conv7"
  count = len(anchors((height, width), strides=tuple(2**k for k in range(min_level, max_level + 1))))
  images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  for backbone in models.BACKBONES:  # sides of its maps are ceil(side / stride)
    model = tiny(backbone=backbone, min_level=min_level, max_level=max_level, stem=stem)

    def rows(images, model=model):
      logits, deltas = model.init_with_output(jax.random.key(0), images)[0]
      return by_anchor(logits, 2), by_anchor(deltas, 4)

    logits, deltas = jax.eval_shape(rows, images)
    assert logits.shape == (2, count, 2) and deltas.shape == (2, count, 4)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_upsampling_picks_the_pixels_that_pytorch_picks(height, width, odd_height, odd_width):
  size = (2 * height - odd_height, 2 * width - odd_width)
  x = np.random.default_rng(0).standard_normal((1, height, width, 2), np.float32)
  expected = np.zeros((1, *size, 2), np.float32)
  for i in range(size[0]):
    for j in range(size[1]):
      expected[:, i, j] = x[:, math.floor(i * height / size[0]), math.floor(j * width / size[1])]
  np.testing.assert_array_equal(upsample(jnp.asarray(x), size), expected)


# --- behaviour ---


def test_levels_of_a_smaller_pyramid_are_those_of_the_whole_one():
  model, variables, images = seeded()
  logits, deltas = jax.jit(model.apply)(variables, images)
  part = tiny(min_level=4, max_level=6)
  part_logits, part_deltas = jax.jit(part.apply)(variables, images)
  assert [z.shape[1:3] for z in part_logits] == list(level_shapes((40, 72), (16, 32, 64)))
  for ours, theirs in ((part_logits, logits[1:4]), (part_deltas, deltas[1:4])):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("relu", [False, True])
def test_p7_is_a_convolution_of_p6_with_a_relu_if_asked(relu):
  rng = np.random.default_rng(0)
  maps = [jnp.asarray(rng.standard_normal((1, n, n, 3)), jnp.float32) for n in (24, 12, 6, 3)]
  fpn = FPN(model_section(fpn_channels=2, p7_relu=relu))
  (*_, p6, p7), variables = fpn.init_with_output(jax.random.key(0), maps)
  x = np.asarray(p6, np.float64)
  assert (x < 0).any()
  x = np.pad(np.maximum(x, 0) if relu else x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = np.asarray(variables["params"]["p7"]["kernel"], np.float64)
  expected = np.einsum("yxi,yxio->o", x[0, :3, :3], kernel)  # P6 is 2x2, P7 one pixel; biases start at 0
  np.testing.assert_allclose(p7[0, 0, 0], expected, atol=1e-5)


def test_an_iou_branch_is_one_convolution_and_changes_nothing_else():
  images = jax.ShapeDtypeStruct((1, 40, 72, 3), jnp.float32)
  flat = lambda tree: {
    jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  outputs = lambda **options: jax.eval_shape(tiny(**options).init_with_output, jax.random.key(0), images)
  (logits, deltas, ious), branch = outputs(iou_branch=True)
  plain, without = outputs()
  added = flat(branch).items() - flat(without).items()
  head = "['params']['regression_head']['iou']"
  assert added == {(f"{head}['bias']", (9,)), (f"{head}['kernel']", (3, 3, 8, 9))}
  assert (flat(plain), by_anchor_shape(ious)) == (flat((logits, deltas)), by_anchor_shape(deltas, 4))


def by_anchor_shape(levels, values=1):
  return jax.eval_shape(lambda levels: by_anchor(levels, values), levels).shape[:2]


def test_initial_values():
  model = tiny(prior=0.05, min_level=5, max_level=5)
  key = jax.random.key(0, impl="rbg")  # compiles in a sixth of the time
  initialise = jax.jit(model.init_with_output, compiler_options=FAST_COMPILE)
  (logits, _), variables = initialise(key, jnp.asarray(seeded_images(40, 72)))
  np.testing.assert_allclose(jax.nn.sigmoid(by_anchor(logits, 2)), 0.05, rtol=0.2)
  params = variables["params"]
  head = params["classification_head"]
  np.testing.assert_allclose(jax.nn.sigmoid(head["output"]["bias"]), 0.05, rtol=1e-5)
  for kernel in (head["conv_0"]["kernel"], head["output"]["kernel"]):
    np.testing.assert_allclose(np.std(kernel), 0.01, rtol=0.1)
  np.testing.assert_array_equal(params["regression_head"]["output"]["bias"], 0.0)
  kernel = params["fpn"]["layer_5"]["kernel"]  # Xavier: uniform within sqrt(6 / (fan in + fan out))
  limit = math.sqrt(6 / (9 * 8 + 9 * 8))
  assert 0.95 * limit < np.abs(kernel).max() <= limit
  kernel = params["backbone"]["layer4_1"]["conv2"]["kernel"]  # He: normal, sqrt(2 / fan out)
  np.testing.assert_allclose(np.std(kernel), math.sqrt(2 / (9 * 32)), rtol=0.05)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 3, 4])
@pytest.mark.parametrize("backbone", models.BACKBONES)
def test_no_gradient_reaches_a_frozen_stage_and_all_others_get_one(backbone, frozen_stages):
  model, variables, images = seeded(backbone=backbone, frozen_stages=frozen_stages, max_level=5)

  def loss(params):
    logits, deltas = model.apply({**variables, "params": params}, images)
    return sum(jnp.sum(x**2) for x in (*logits, *deltas))

  gradient = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(variables["params"])
  mask = trainable_mask(variables["params"], model.settings)
  stages = set()
  for (path, g), trains in zip(
    jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(mask), strict=True
  ):
    names = [key.key for key in path]
    is_frozen = False
    if names[0] == "backbone":
      stage = models.backbone_class(backbone).stage_of(names[1])
      stages.add(stage)
      is_frozen = stage <= frozen_stages
    assert trains != is_frozen, names
    assert bool(jnp.any(g != 0)) == trains, names
  assert stages == {0, 1, 2, 3, 4}, "a stem and four stages"


def test_stages_of_resnet():
  stages = {name: ResNet.stage_of(name) for name in ("conv1", "bn1", "layer1_0", "layer2_3", "layer4_22")}
  assert list(stages.values()) == [0, 0, 1, 2, 4]
  with pytest.raises(ValueError):  # a name that is none of its own has no stage, rather than the stem's
    ResNet.stage_of("blocks_1")


def test_a_backbone_says_which_of_its_modules_are_frozen(monkeypatch):
  """A mask by the prefix of ResNet's names would take every other backbone for one stem."""

  class Other:
    @staticmethod
    def stage_of(module):
      return 0 if module == "patches" else int(module[-1])

  monkeypatch.setitem(models.BACKBONES, "resnet", "Other")
  monkeypatch.setattr(resnet, "Other", Other, raising=False)
  names = ("patches", "blocks1", "blocks2")
  params = {"backbone": {name: {"kernel": 0} for name in names}, "fpn": {"p6": 0}}
  for frozen_stages, expected in ((-1, [1, 1, 1]), (0, [0, 1, 1]), (1, [0, 0, 1]), (4, [0, 0, 0])):
    mask = trainable_mask(params, model_section(frozen_stages=frozen_stages))
    assert [mask["backbone"][name]["kernel"] for name in names] == expected and mask["fpn"]["p6"]


def test_every_module_that_is_a_backbone_is_in_the_table():
  for path in Path(models.__file__).parent.glob("[a-z]*.py"):
    module = importlib.import_module(f"iou_det.models.{path.stem}")
    own = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
    is_backbone = any(hasattr(x, "stage_of") for x in own)
    assert is_backbone == (path.stem in models.BACKBONES), f"{path.stem}: BACKBONES lacks it, or it is none"


def test_frozen_batch_norm_uses_its_statistics_and_group_norm_has_none():
  model, variables, images = seeded()
  shifted = jax.tree.map(lambda x: x + 1.0, variables["batch_stats"])
  run = jax.jit(lambda variables, images: by_anchor(model.apply(variables, images)[0], 2))
  same = run(variables, jnp.concatenate([images, 5 * images]))[:1]  # the batch changes no statistic
  np.testing.assert_allclose(same, run(variables, images), atol=1e-5)
  assert np.abs(run({**variables, "batch_stats": shifted}, images) - same).max() > 1e-3
  assert shapes_of(tiny(norm="gn", head_norm="gn")).keys() == {"params"}


def test_group_norm_model_ignores_the_scale_of_the_image():
  model, variables, images = seeded(norm="gn", head_norm="gn", max_level=5)
  run = jax.jit(lambda images: by_anchor(model.apply(variables, images)[0], 2))
  np.testing.assert_allclose(run(images), run(30 * images), atol=1e-3)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters():
  model, variables, images = seeded(norm="gn", head_norm="gn", max_level=5)
  half = model.clone(dtype=jnp.bfloat16)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes_of(half)))
  run = lambda m: jax.jit(m.apply)(variables, images)
  for full, halved, values in zip(run(model), run(half), (2, 4), strict=True):
    assert {level.dtype.name for level in halved} == {"bfloat16"}
    difference = by_anchor(full, values) - by_anchor(halved, values)
    # A rounding between convolution and norm more than Flax's layers had on a CPU, where XLA left it out.
    assert 0 < np.sqrt(np.mean(difference**2)) < 0.02 and np.abs(difference).max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 18), (9, 7)])
def test_stem_on_blocks_of_pixels_is_the_plain_convolution(height, width):
  x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
  weights = jax.random.normal(jax.random.key(1), (7, 7, 3, 5))
  plain = jax.lax.conv_general_dilated(x, weights, (2, 2), [(3, 3)] * 2, dimension_numbers=LAYOUT)
  np.testing.assert_allclose(stem_convolution(x, weights), plain, atol=1e-4)


def test_stem_on_blocks_of_four_and_its_pool_are_the_plain_ones():
  x = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
  weights = jax.random.normal(jax.random.key(1), (7, 7, 3, 5))
  plain = jax.lax.conv_general_dilated(x, weights, (2, 2), [(3, 3)] * 2, dimension_numbers=LAYOUT)
  of_blocks = stem_convolution(x, weights, block=4)
  assert of_blocks.shape == (2, 4, 6, 20)
  pixels = of_blocks.reshape(2, 4, 6, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(plain.shape)
  np.testing.assert_allclose(pixels, plain, atol=1e-4)
  np.testing.assert_allclose(max_pool_of_blocks(of_blocks), max_pool(plain), atol=1e-4)


@pytest.mark.parametrize(
  ("size", "frozen", "wide"), [((32, 64), 0, True), ((32, 64), -1, False), ((30, 64), 0, False)]
)
def test_a_frozen_stem_may_see_blocks_of_four_and_finds_the_same(size, frozen, wide):
  images = jax.random.normal(jax.random.key(0), (1, *size, 3))
  plain = ResNet(model_section(depth=18, width=4, frozen_stages=frozen))
  blocks = plain.clone(forms=Forms(stem_block=4))
  variables = plain.init(jax.random.key(1), images)
  run = jax.jit(lambda v: (plain.apply(v, images), blocks.apply(v, images)))
  for ours, theirs in zip(*run(variables), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  assert ("f32[3,3,48,16]" in str(jax.make_jaxpr(blocks.apply)(variables, images))) == wide


class Shortcut(nn.Module):
  """The end of a bottleneck."""

  joined: bool

  @nn.compact
  def __call__(self, y, x):
    layer = ConvNorm("frozen_bn", jnp.float32)
    if self.joined:
      return layer.joined(y, x, 8, 2)
    return layer(y, 8, 1, 1, ("conv3", "bn3")) + layer(x, 8, 1, 2, ("downsample_0", "downsample_1"))


def test_a_shortcut_joined_to_the_last_convolution_is_both_with_their_gradients():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  y, x, gradient = draw(2, 4, 3, 2), draw(2, 7, 5, 3), draw(2, 4, 3, 8)
  variables = jax.eval_shape(Shortcut(False).init, jax.random.key(0), y, x)
  variables = jax.tree.map(lambda v: np.abs(draw(*v.shape)), variables)

  @functools.partial(jax.jit, static_argnums=0)
  def run(joined, *arguments):
    out, pull = jax.vjp(Shortcut(joined).apply, *arguments)
    return out, pull(gradient)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, run(True, variables, y, x), run(False, variables, y, x))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 18)])
def test_a_patchify_stem_is_a_large_convolution_with_a_stride_of_4(height, width):
  x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
  kernel = np.asarray(jax.random.normal(jax.random.key(1), (3, 3, 48, 5)))  # of blocks
  of_blocks = jax.lax.conv_general_dilated(
    patches(x, 4), kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=LAYOUT
  )
  large = np.zeros(
    (12, 12, 3, 5)
  )  # the same on pixels: 4 of them before the image, whatever is needed behind
  for row in range(12):
    for column in range(12):
      first = 3 * (4 * (row % 4) + column % 4)
      large[row, column] = kernel[row // 4, column // 4, first : first + 3]
  padding = [(4, 4 + -side % 4) for side in (height, width)]
  plain = jax.lax.conv_general_dilated(x, np.float32(large), (4, 4), padding, dimension_numbers=LAYOUT)
  np.testing.assert_allclose(of_blocks, plain, atol=1e-4)


def test_computing_activations_again_changes_no_gradient():
  images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
  options = {"depth": 18, "width": 4, "frozen_stages": -1}
  variables = ResNet(model_section(**options)).init(jax.random.key(1), images)

  def gradient(remat):
    model = ResNet(model_section(**options, remat=remat))
    return jax.grad(lambda v: jnp.sum(model.apply(v, images)[-1] ** 2))

  assert "remat" in str(jax.make_jaxpr(gradient(True))(variables))
  far = jax.jit(
    lambda v: jax.tree.map(
      lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a), gradient(False)(v), gradient(True)(v)
    )
  )
  assert max(jax.tree.leaves(far(variables))) < 1e-5
