"""Which checkpoints stay, and which one "best" is, also after the process that wrote them has ended."""

import json

import jax.numpy as jnp
import pytest

from iou_det.errors import UserError
from iou_det.workdir.checkpoints import Checkpoints


def save(workdir, scores, keep=2):
  checkpoints = Checkpoints(workdir, keep=keep)
  for step, ap in scores:
    checkpoints.save(step, {"w": jnp.full(3, float(step))}, {"step": step})
    if ap is not None:  # scored after it was saved, as the loop does
      checkpoints.scores[step] = ap
      with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "val/AP": ap, "val/AP50": 1.0}) + "\n")
  checkpoints.close()


def test_last_and_best_stay_over_restarts(tmp_path):
  save(tmp_path, [(1, 0.1), (2, 0.9), (3, 0.3), (4, None)])
  reader = Checkpoints(tmp_path, read_only=True)
  assert reader.steps() == [2, 3, 4]
  save(tmp_path, [(5, 0.2), (6, 0.4)])
  reader = Checkpoints(tmp_path, read_only=True)
  assert reader.steps() == [2, 5, 6]
  assert reader.step_number("best") == 2
  assert reader.step_number("last") == 6
  assert reader.step_number("5") == 5
  assert reader.run_information(2)["step"] == 2
  with pytest.raises(UserError, match="there are 2, 5, 6"):
    reader.step_number("4")


def test_best_needs_an_evaluation(tmp_path):
  save(tmp_path, [(1, None)])
  with pytest.raises(UserError, match="no checkpoint was evaluated"):
    Checkpoints(tmp_path, read_only=True).step_number("best")


def test_workdir_without_checkpoints_says_how_to_train(tmp_path):
  with pytest.raises(UserError, match="train first"):
    Checkpoints(tmp_path, read_only=True)
