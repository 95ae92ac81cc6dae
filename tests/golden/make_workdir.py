"""Makes tests/golden/workdir: a tiny run as commit b4a70ee wrote it, before config fields were added since.

Usage, with that commit checked out and installed: python make_workdir.py DEST

DEST gets the run as it was after the first of its two epochs, and expected.json: what that commit made of
it (losses of the second epoch, metrics and detections after the first).
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from absl import flags

from iou_det.config import base_config
from iou_det.data.shapes import Shapes, export_coco
from iou_det.training.loop import train

flags.FLAGS.mark_as_parsed()
destination = Path(sys.argv[1])
with tempfile.TemporaryDirectory() as scratch:
  data = Path(scratch) / "shapes"
  for split, images in (("train", 32), ("val", 13)):
    export_coco(Shapes(split, images=images, height=64, width=96), data)
  config = base_config()
  config.model.update(depth=18, width=4, frozen_stages=1, fpn_channels=8, head_convs=1, max_level=5)
  config.anchors.update(convention="modern", octaves=1)
  config.loss.update(eta=1.5, lambd=1.5, w_loc=3.049)
  config.data.update(path=str(data), short=64, long=96, canvas=(64, 96), max_boxes=16, threads=2)
  config.train.update(batch_size=8, epochs=2, warmup_steps=4, decay_epochs=(), log_every=1)
  config.eval.update(batch_size=8, score_threshold=0.001, max_detections=10)
  workdir = Path(scratch) / "run"
  train(config, workdir)
  # Again, and stopped behind the first evaluation: its scores are those of step 4.
  config.train.epochs = 1
  train(config, Path(scratch) / "half")
  shutil.copytree(workdir / "checkpoints" / "4", destination / "checkpoints" / "4")
  (destination / "eval" / "val").mkdir(parents=True)
  for name in ("detections.json", "metrics.json"):
    shutil.copy(Path(scratch) / "half" / "eval" / "val" / name, destination / "eval" / "val" / name)
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  lines = [json.dumps(row) + "\n" for row in rows if row["step"] <= 4]
  (destination / "metrics.jsonl").write_text("".join(lines))
  shutil.copy(workdir / "config.json", destination / "config.json")
  losses = {row["step"]: row["loss"] for row in rows if "loss" in row and row["step"] > 4}
  final = json.loads((workdir / "eval" / "val" / "metrics.json").read_text())
  expected = {"losses": losses, "metrics": final}
  (destination / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
