"""Configs of the paper's runs against its tables; which runs an experiment plans."""

import json
import re

import jax
import pytest

from iou_det.config import validate, with_loss
from iou_det.config_args import find_config, read_config_file
from iou_det.data.shapes import Shapes
from iou_det.errors import UserError
from iou_det.evaluation.results import Results
from iou_det.paper import reproduce
from iou_det.paper.experiments import EXPERIMENTS
from iou_det.paper.reproduce import dry_run, plan
from iou_det.paper.results import finished
from iou_det.paper.runs import PRESETS, RUNS, Reproduction, Run, run_config
from iou_det.training.step import learning_rate
from iou_det.training.wloc import resolve_w_loc


def loss(argument):
  config = read_config_file(find_config("paper"), argument)
  return config, (config.loss.eta, config.loss.lambd, config.loss.w_loc)


@pytest.mark.parametrize(
  ("argument", "expected", "short", "depth"),
  [
    ("run=baseline,backbone=r101,short=800", (0.0, 0.0, 1.0), 800, 101),
    ("run=both,backbone=r101,short=800", (1.5, 1.5, 2.878), 800, 101),
    ("short=800", (1.5, 1.5, 3.049), 800, 50),
    ("run=baseline", (0.0, 0.0, 1.0), 600, 50),
    ("run=cls", (1.5, 0.0, 1.0), 600, 50),
    ("run=loc", (0.0, 1.5, 3.049), 600, 50),
    ("", (1.5, 1.5, 3.049), 600, 50),
    ("run=eta1.4", (1.4, 0.0, 1.0), 600, 50),
    ("run=lambd0.5", (0.0, 0.5, 1.575), 600, 50),
    ("run=lambd1.0", (0.0, 1.0, 2.226), 600, 50),
    ("run=lambd1.8", (0.0, 1.8, 3.649), 600, 50),
    ("run=loc_eq5", (0.0, 1.5, 1.0), 600, 50),
    ("run=loc,preset=shapes", (0.0, 1.5, "auto"), 150, 18),
    ("backbone=r101,preset=deeppcb", (1.5, 1.5, "auto"), 640, 34),
    ("run=loc_weight2.0,preset=shapes", (0.0, 1.5, 2.0), 150, 18),
  ],
)
def test_configs_are_the_papers_rows(argument, expected, short, depth):
  config, numbers = loss(argument)
  assert numbers == expected
  assert (config.data.short, config.model.depth) == (short, depth)
  assert config.loss.loc_weights == ("eq5" if "eq5" in argument else "eq4")


@pytest.mark.parametrize(
  ("argument", "batch", "rate"),
  [
    ("", 4, 0.0025),
    ("run=baseline", 4, 0.0025),
    ("short=800", 16, 0.01),
    ("backbone=r101,short=800", 16, 0.01),
  ],
)
def test_on_coco_they_have_the_papers_batch_rate_warm_up_and_groups(argument, batch, rate):
  """2 GPUs of 2 images in the ablations, 8 for Table 1; written out here, not computed as the config does."""
  config, _ = loss(argument)
  assert (config.train.batch_size, config.train.accumulate) == (batch, 1)
  assert (config.loss.group, config.loss.normalizer, config.loss.average) == (2, "level", "batch")
  schedule = learning_rate(config.train, steps_per_epoch=1000)
  rates = [float(schedule(step)) for step in (0, 500, 7999, 8000, 11000)]
  assert rates == pytest.approx([rate / 3, rate, rate, rate / 10, rate / 100])


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("run=all", "run=all: must be one of baseline, cls, loc, both, eta1.0"),
    ("run=baseline_w_loc", "must be one of"),
    ("run=giou_effective", "must be one of"),
    ("preset=voc", "preset=voc: must be one of coco, deeppcb, shapes"),
    ("backbone=r18", "backbone=r18: must be one of r50, r101"),
    ("short=640", "short=640: must be one of 600, 800"),
    ("preset=shapes,short=800", "short=800: must be one of 600"),
    ("runs=both", "'runs=both' is not known"),
    ("seed=x", "'x' is not a whole number"),
  ],
)
def test_wrong_arguments_are_refused(argument, message):
  with pytest.raises(UserError, match=message):
    loss(argument)


def test_the_config_names_every_run_that_needs_no_other(tmp_path):
  for preset in PRESETS:
    for experiment in EXPERIMENTS:
      for run in plan(experiment, Reproduction(tmp_path, preset), seeds=2, controls=False):
        if run.needs:
          continue
        size = f",backbone={'r101' if run.large else 'r50'},short={800 if run.full_size else 600}"
        config, _ = loss(f"run={run.name},preset={preset},seed={run.seed}{size}")
        assert config.to_dict() == run_config(run, preset).to_dict()


def test_every_run_of_every_preset_has_a_valid_config():
  for preset in PRESETS:
    for name in RUNS:
      config = run_config(Run(name, seed=3), preset)
      config.data.path = config.data.path or "somewhere"
      validate(config)
      assert config.seed == 3


def test_plan_shares_runs_and_puts_what_is_needed_first(tmp_path):
  reproduction = Reproduction(tmp_path, "shapes")
  runs = plan("table2", reproduction, seeds=2, controls=True)
  assert len(runs) == len(set(runs)) == 16
  for run in runs:
    assert all(runs.index(needed) < runs.index(run) for needed in run.needs)
  assert {r.name for r in plan("table3", reproduction, seeds=1, controls=False)} == {r.name for r in runs[:4]}
  large = plan("table1", Reproduction(tmp_path, "coco", "x"), seeds=1, controls=False)
  assert [(r.name, r.large, r.full_size) for r in large] == [
    ("baseline", False, True), ("both", False, True), ("baseline", True, True), ("both", True, True),
  ]  # fmt: skip
  folders = [
    reproduction.folder(r) for e in EXPERIMENTS for r in plan(e, reproduction, seeds=2, controls=False)
  ]
  assert len({f for f in folders}) == len({(f.parent.name, f.name) for f in folders})


def write_run(workdir, config, *, step=10, epoch=None, weights=(1.0, 3.0)):
  (workdir / "eval" / config.data.val_split).mkdir(parents=True)
  (workdir / "config.json").write_text(json.dumps(config.to_dict()))
  metrics = {"AP": 0.5, "step": step, "AP_per_iou": {"0.60": 0.4}, "images": 5}
  (workdir / "eval" / config.data.val_split / "metrics.json").write_text(json.dumps(metrics))
  epochs = config.train.epochs if epoch is None else epoch
  rows = [
    {"step": 1, "loss": 1.0, "epoch": 0.1, "localization_weight": weights[0], "images_per_second": 1.0},
    {"step": 10, "loss": 1.0, "epoch": epochs, "localization_weight": weights[1], "images_per_second": 50.0},
    {"step": 10, "val/AP": 0.5},
  ]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_a_run_is_finished_when_config_and_metrics_agree(tmp_path):
  config = run_config(Run("loc", 0), "shapes")
  assert not finished(config, tmp_path / "none")
  write_run(tmp_path / "whole", config)
  assert finished(config, tmp_path / "whole")
  write_run(tmp_path / "half", config, epoch=1)
  assert not finished(config, tmp_path / "half")
  write_run(tmp_path / "old", config, step=5)
  assert not finished(config, tmp_path / "old")
  assert not finished(run_config(Run("loc", 1), "shapes"), tmp_path / "whole")
  (tmp_path / "whole" / "eval" / "test" / "metrics.json").unlink()
  assert not finished(config, tmp_path / "whole")


def test_what_a_run_left_is_refused_where_it_is_not_whole(tmp_path):
  config = run_config(Run("loc", 0), "shapes")
  write_run(tmp_path, config)
  run = Results.read(tmp_path)
  for name, read in {
    "w_loc.json": lambda: run.w_loc,
    "eval/test/detections.json": run.detections,
    "eval/test/metrics.json": lambda: Results.read(tmp_path),
    "config.json": lambda: Results.read(tmp_path),
  }.items():
    (tmp_path / name).write_text('{"AP": 0.')
    with pytest.raises(UserError, match=f"{name} is not JSON, or not whole .*; .* (again|new --workdir)"):
      read()
  with pytest.raises(UserError, match=r"w_loc\.json is not JSON, or not whole"):
    resolve_w_loc(config, Shapes("train", images=1).source(), tmp_path)


def test_controls_take_their_weight_from_the_balanced_run(tmp_path):
  reproduction = Reproduction(tmp_path, "shapes")
  workdir = reproduction.folder(Run("loc", 1))
  write_run(workdir, reproduction.config(Run("loc", 1)), weights=(1.0, 3.0))
  (workdir / "w_loc.json").write_text('{"w_loc": 2.7}')
  # One step at weight 1 and nine at 3.
  assert Results.read(workdir).effective_weight == pytest.approx(2.8)
  assert reproduction.config(Run("baseline_effective", 1)).loss.w_loc == pytest.approx(2.8)
  assert reproduction.config(Run("baseline_w_loc", 1)).loss.w_loc == 2.7
  assert reproduction.config(Run("baseline_w_loc", 1)).loss.lambd == 0
  assert Results.read(workdir).figure("AP60") == pytest.approx(40.0)


def test_a_pilot_s_weight_is_scaled_until_its_figure_is_the_goal_s(tmp_path):
  reproduction = Reproduction(tmp_path, "shapes")
  write = lambda name, **rest: write_run(
    reproduction.folder(Run(name, 1)), reproduction.config(Run(name, 1)), **rest
  )
  write("loc", weights=(3.0, 3.0))
  write("giou", weights=(2.0, 2.0))
  (reproduction.folder(Run("giou", 1)) / "w_loc.json").write_text('{"w_loc": 0.8}')
  run = Run("giou_effective", 1)
  assert run.needs == (Run("loc", 1), Run("giou", 1))
  with pytest.raises(UserError, match=r"giou/seed1/metrics\.jsonl does not say effective_weight"):
    reproduction.config(run)  # of an earlier version, which compared a box loss with itself
  with (reproduction.folder(Run("giou", 1)) / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 1, "localization_gradient_norm": 1.0}) + "\n")
  config = reproduction.config(run)
  assert config.loss.w_loc == pytest.approx(0.8 * 3 / 2)
  assert config.loss.localization == "giou" and config.loss.lambd == 0

  write("baseline")
  write("varifocal")
  scaled = Run("varifocal_scaled", 1)
  with pytest.raises(
    UserError, match=r"metrics\.jsonl does not say classification_gradient, which other runs"
  ):
    reproduction.config(scaled)
  for name, norms in (("baseline", (1.0, 2.0)), ("varifocal", (0.3, 0.7))):
    with (reproduction.folder(Run(name, 1)) / "metrics.jsonl").open("a") as file:
      for step, norm in enumerate(norms):
        file.write(json.dumps({"step": step, "classification_gradient_norm": norm}) + "\n")
  config = reproduction.config(scaled)
  assert config.loss.w_cls == pytest.approx(1.5 / 0.5) and config.loss.alpha == 0.75
  runs = plan("comparison", reproduction, seeds=1, controls=False)
  assert len(runs) == 20 and all(runs.index(n) < runs.index(r) for r in runs for n in r.needs)


def test_other_processes_train_what_process_0_says(tmp_path, monkeypatch):
  """They ask no file: theirs may be older. Here the run that the weight comes from is not there at all."""
  run, other = Run("baseline_w_loc", 0), Run("cls", 0)
  settings = with_loss(run_config(run, "shapes"), w_loc=1 / 3).to_dict()
  answers = [None, settings, None]  # of the folders; of the runs, of which None is a finished one
  said = iter(json.loads(json.dumps(answers)))
  trained = []
  monkeypatch.setattr(reproduce, "by_process_0", lambda work: next(said))
  monkeypatch.setattr(reproduce, "train", lambda config, workdir, devices: trained.append((config, workdir)))
  reproduction = Reproduction(tmp_path, "shapes")
  reproduce.run_all([run, other], reproduction)
  ((config, workdir),) = trained
  assert config.to_dict() == settings and workdir == reproduction.folder(run)


def test_a_folder_of_other_settings_is_refused_before_any_training(tmp_path, monkeypatch):
  reproduction = Reproduction(tmp_path, "shapes")
  runs = plan("table2", reproduction, seeds=2, controls=True)
  older = reproduction.config(Run("both", 1))
  older.train.epochs += 2
  write_run(reproduction.folder(Run("both", 1)), older)
  moved = reproduction.config(Run("cls", 0))
  moved.data.path = "elsewhere"  # data may move
  write_run(reproduction.folder(Run("cls", 0)), moved)
  monkeypatch.setattr(reproduce, "train", lambda *_: pytest.fail("it trains"))
  with pytest.raises(UserError, match=r"both/seed1 was trained .*train\.epochs: 4 != 2.*delete the folder"):
    reproduce.run_all(runs, reproduction)
  text = dry_run(runs, reproduction)
  assert re.search(r"^both/seed1 +other settings ", text, re.MULTILINE) and "is refused" in text
  assert "16 runs; to do: 112,000 images" in text  # all but it and the finished one


@pytest.mark.parametrize(("devices", "processes", "used"), [(8, 1, 4), (3, 1, 1), (2, 1, 2), (8, 8, 8)])
def test_no_more_devices_are_used_than_share_a_step_s_images_evenly(monkeypatch, devices, processes, used):
  config = run_config(Run("baseline", 0), "coco")
  assert config.train.batch_size == 4
  there = jax.devices()[:1] * devices
  monkeypatch.setattr(reproduce.jax, "devices", lambda: there)
  monkeypatch.setattr(reproduce.jax, "process_count", lambda: processes)
  assert len(reproduce.devices_for(config)) == used


def test_dry_run_tells_hours_by_runs_that_were_begun(tmp_path):
  reproduction = Reproduction(tmp_path, "shapes")
  runs = plan("table2", reproduction, seeds=1, controls=False)
  text = dry_run(runs, reproduction)
  assert "4 runs; to do: 32,000 images, hours unknown for 32,000" in text
  write_run(reproduction.folder(runs[0]), reproduction.config(runs[0]))
  (reproduction.folder(runs[1]) / "checkpoints").mkdir(parents=True)
  text = dry_run([*runs, Run("baseline", 0, large=True)], reproduction)
  assert re.search(r"^baseline/seed0 +finished +8,000 +1,000$", text, re.MULTILINE)
  assert re.search(r"^cls/seed0 +interrupted +8,000", text, re.MULTILINE)
  hours = f"{3 * 8_000 / 50 / 3600:.2f} hours at the speed measured here"
  assert f"to do: 32,000 images, {hours}, hours unknown for 8,000" in text
