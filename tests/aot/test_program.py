"""What is compiled is the step that trains and the detection of a detector; what is asked for wrongly."""

import json

import jax
import pytest

from iou_det.aot import target as targets
from iou_det.aot.program import batch_shapes, compile_for, largest_batch, trace
from iou_det.aot.report import figures, page
from iou_det.aot.target import get_target
from iou_det.bench import synthetic
from iou_det.bench.synthetic import Case
from iou_det.detector import Detector
from iou_det.errors import UserError
from tests.command import iou_det
from tests.compilers import run
from tests.tiny import tinier_config


def test_it_is_the_program_that_runs():
  """Traced from shapes as from values it is the same text: the step on two devices, detection on one."""
  config = tinier_config("made up")
  case = Case(config, 3, 4, 8, jax.devices()[:2])
  step = case._step(config).lower(case.state, case.arrays, False)
  state, traced = trace(config, 3, "train", 8, case.mesh)
  assert traced.lower().as_text() == step.as_text()
  assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, case.state)
  case = Case(config, 3, 4, 8, jax.devices()[:1])
  detect = Detector(config, case.model, case.mesh, ()).step.lower(case.state.variables, case.arrays, False)
  assert trace(config, 3, "detect", 8, case.mesh)[1].lower().as_text() == detect.as_text()


def test_batches_are_the_pipelines():
  config, mesh = tinier_config("made up"), Case(tinier_config("made up"), 3, 4, 8).mesh
  host = synthetic.batch(config, 8, 3, 4)
  shapes = batch_shapes(config, 8, mesh)
  assert {k: (v.shape, v.dtype) for k, v in host.items()} == {
    k: (v.shape, v.dtype) for k, v in shapes.items()
  }


def test_figures_of_a_step_on_this_cpu():
  config = tinier_config("made up")
  found = compile_for(get_target("cpu:2", 1), config, 3, "train")
  row = json.loads(json.dumps(figures(found, 12)))
  assert (row["chips"], row["batch"], row["batch_per_chip"]) == (2, 8, 4) and row["fits"]
  for name in ("bytes", "kernels", "flops"):
    assert row[name] == sum(part[name] for part in row["parts"].values())
  # The compiler drops a little (gradients that nothing needs) and pads nothing here.
  assert 0.9 < row["model_share"] < 1.1
  assert row["floor_bytes"] < row["bytes"] and row["arguments_bytes"] < row["peak_bytes"]
  gradients = 4 * 202_000  # bytes of the tiny network's parameters, about
  assert 0.9 * gradients < row["collectives"]["all-reduce"]["bytes"] < 1.3 * gradients
  parts = row["parts"]
  assert {"backbone forward", "backbone backward", "optimizer", "matching", "preprocessing"} <= parts.keys()
  # For each convolution a gradient of its kernel and one of its input, each as dear; none of the images.
  assert 1.4 < parts["backbone backward"]["flops"] / parts["backbone forward"]["flops"] < 2.1
  assert row["bound_seconds"] is None, "of a CPU no figures are known"
  text = page(row)
  assert "12 images a chip" in text and "backbone backward" in text


def test_the_models_flops_do_not_count_what_remat_repeats():
  config = tinier_config("made up")
  once = compile_for(get_target("cpu", 1), config, 3, "train")
  config.model.remat = True
  again = compile_for(get_target("cpu", 1), config, 3, "train")
  assert again.model_flops == once.model_flops
  split = compile_for(get_target("cpu:4", 1), config, 3, "train")
  assert split.model_flops == pytest.approx(once.model_flops / 4)


@pytest.mark.parametrize("first", [1, 4, 29, 64, 500])
@pytest.mark.parametrize("refused", [30, 40, 10_000])  # from here on the compiler finds no place
def test_the_largest_batch_is_found_in_few_steps(first, refused):
  tried = []

  def peak_of(images):
    tried.append(images)
    return (
      None if images >= refused else 1000 + 98 * images + images**2 // 15
    )  # memory for 29 images, no more

  assert largest_batch(peak_of, first, peak_of(first), 3_900) == 29
  assert len(tried) <= 10 and len(set(tried)) == len(tried), tried


def test_far_below_the_end_few_sizes_are_tried():
  tried = []

  def peak_of(images):
    tried.append(images)
    return 460 + 447 * images

  assert largest_batch(peak_of, 1, peak_of(1), 84_900) == 188
  assert len(tried) <= 5, tried


def test_a_little_more_that_takes_a_little_less_leads_nowhere_far():
  tried = []

  def peak_of(images):
    tried.append(images)
    return None if images > 30 else {28: 2_900}.get(images, 110 * images)

  assert largest_batch(peak_of, 27, peak_of(27), 3_100) == 28
  assert max(tried) <= 56, tried


def test_no_image_fits():
  assert largest_batch(lambda images: 101 * images, 8, 808, 100) == 0


@pytest.mark.parametrize(
  ("target", "slices", "message"),
  [
    ("b300:8", 1, "there is no 'b300'; known: v5e, v5p, v6e, h100, h200, a100, cpu"),
    ("v5e:axb", 1, "'axb' is no number of chips; allowed: "),
    ("v5e:", 1, "'' is no number of chips; allowed: "),
    ("h100:2x9", 1, "allowed are h100:HOSTSxCHIPS with up to 8 chips a host"),
    ("h100:8", 2, "h100 has none, TPUs have; several hosts are written h100:2x8"),
    ("cpu:99", 1, "there are 8 CPU devices"),
    ("v5litepod-16", 1, "v5e:4x4 (Google's v5litepod-16)"),
    ("v5p:4x4", 1, "its chips lie along 3 axes; allowed are v5p:2x2x1, v5p:2x2x4"),
    ("v5e:3x5", 1, "there is no slice of 3x5 chips; there are 1x1, 2x2, 2x4, 4x4"),
    ("v6e:16", 1, "there is no slice of 16 chips; there are 1x1, "),
    ("v5e:2x2", 1, "needs libtpu; pip install -e '.[aot-tpu]'"),
    ("a100", 1, "needs XLA's CUDA compiler; pip install -e '.[aot-gpu]'"),
  ],
)
def test_wrong_targets_and_lacking_extras(monkeypatch, target, slices, message):
  monkeypatch.setattr(targets, "find_spec", lambda name: target in ("v5p:4x4", "v5e:3x5", "v6e:16") or None)
  with pytest.raises(UserError) as error:
    get_target(target, slices)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_batches_that_do_not_divide():
  config = tinier_config("made up")
  config.train.batch_size = 6
  with pytest.raises(
    UserError, match="--target=cpu:4: --batch_size=6 is not divisible by the 4 devices; allowed are multiples"
  ):
    compile_for(get_target("cpu:4", 1), config, 3, "train")


def test_bad_flags_are_one_line():
  for target, message in (("h101", "--target=h101: there is no 'h101'"), ("", "--target is empty; give one")):
    done = iou_det("compile", "--config=shapes", f"--target={target}", XLA_FLAGS="")
    assert done.returncode == 2 and done.stderr.startswith(f"iou-det compile: {message}")
    assert len(done.stderr.splitlines()) == 1


TOPOLOGIES = """
from iou_det.aot.target import get_target
from iou_det.errors import UserError
for name, slices in (("v5e:4x4", 2), ("v5p", 1), ("v6e:2x4", 1), ("h100:2x8", 1), ("v5p:3x3x3", 1)):
  try:
    found = get_target(name, slices)
    print(len(found.devices), found.hosts, found.devices[0].device_kind.startswith(found.chip.kind))
  except UserError as error:
    print(error)
"""


@pytest.mark.aot
def test_chips_hosts_and_slices_of_absent_machines():
  *sizes, wrong = run(TOPOLOGIES).splitlines()
  assert sizes == ["32 8 True", "1 1 True", "8 2 True", "16 2 True"]
  assert wrong.startswith("--target=v5p:3x3x3: ") and wrong.endswith("allowed are whole hosts, as v5p:2x2x4")
