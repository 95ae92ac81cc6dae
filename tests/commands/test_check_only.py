"""`iou-det train --check_only`: what training would refuse, said without devices; nothing is left behind."""

import json
import shutil

import pytest
from safetensors.numpy import save_file

from tests.command import iou_det

SMALL = ["--config=shapes", "--config.data.short=64", "--config.data.long=96"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def check(*arguments):
  done = iou_det("train", "--check_only", *SMALL, *arguments, JAX_PLATFORMS="tpu")  # no device is looked for
  return done.returncode, done.stdout, done.stderr.splitlines()[-1] if done.returncode else ""


def test_all_is_checked_where_all_is_here(here, shapes_folder):
  code, out, _ = check(f"--config.data.path={shapes_folder}", "--workdir=w")
  assert code == 0
  assert out.splitlines() == [
    "not checked: that config.train.batch_size=8 and config.eval.batch_size=16 divide over the devices",
    out.splitlines()[-1],
  ]
  assert out.splitlines()[-1].startswith("checked: flags, config, extras, data (4 classes, 4 steps an epoch)")
  assert out.endswith("workdir (a small checkpoint was written, read and removed)\n")
  assert list(here.iterdir()) == []


def test_what_is_elsewhere_is_named(here):
  code, out, _ = check("--config.data.path=b/coco", "--config.model.init=b/run", "--workdir=b/runs/a")
  assert code == 0
  assert "not checked: config.data.path=b/coco is not on this machine\n" in out
  assert "not checked: config.model.init=b/run is not on this machine\n" in out
  assert "not checked: that --workdir=b/runs/a can be written; b/runs is not there\n" in out
  assert list(here.iterdir()) == []


@pytest.mark.parametrize(
  ("flags", "part"),
  [
    (["--config.data.max_boxes=1"], "config.data.max_boxes=1 is too small"),
    (["--config.data.val_split=test"], "has no split 'test'"),
    (["--config.data.val_annotations=gone.json"], "annotation file gone.json does not exist"),
    (["--config.model.pretrained=timm/resnet18"], "norm='gn' has no place for"),
    (["--config.model.norm=frozen_bn", "--config.model.pretrained=what"], "not a Hugging Face id"),
    (["--config.model.norm=frozen_bn", "--config.model.pretrained=bad.safetensors"], "not this network's"),
    (["--config.train.epochs=0"], "config.train.epochs=0: must be above 0"),
  ],
)
def test_what_training_refuses_is_refused(here, shapes_folder, flags, part):
  import numpy as np

  save_file({"conv1.weight": np.zeros((1, 1), np.float32)}, here / "bad.safetensors")
  code, out, error = check(f"--config.data.path={shapes_folder}", *flags, "--workdir=w")
  assert (code, out) == (2, "")
  assert error.startswith("iou-det train: ") and part in error
  assert not (here / "w").exists()


@pytest.mark.parametrize(
  ("flags", "module", "extra"),
  [
    (["--config.model.norm=frozen_bn", "--config.model.pretrained=timm/a"], "huggingface_hub", "pretrained"),
    (["--config.eval.backend=hotcoco"], "hotcoco", "fast-eval"),
  ],
)
def test_missing_extras_are_named(here, flags, module, extra):
  """As where it is not installed: a module of that name that cannot be imported."""
  (here / "first").mkdir()
  (here / f"first/{module}.py").write_text("raise ImportError")
  import os
  import subprocess
  import sys

  from tests.command import ROOT

  code = "from iou_det.cli import main; main()"
  command = [sys.executable, "-c", code, "train", "--check_only", *SMALL, *flags, "--workdir=w"]
  environment = os.environ | {"PYTHONPATH": f"{here / 'first'}:{ROOT}"}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]
  assert module in last and f"pip install -e '.[{extra}]'" in last


def test_a_detector_of_another_network_and_a_workdir_of_another_config(here, reference):
  code, _, error = check(f"--config.model.init={reference[0]}", "--workdir=w")
  assert code == 2 and "is of another network or other anchors" in error
  shutil.copytree(reference[0], here / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
  code, _, error = check("--workdir=run")
  assert code == 2 and "belongs to another config" in error
  assert json.loads((here / "run/config.json").read_text())
