"""Writes a trained detector as one file to share, or to run where this package is not.

  iou-det export --workdir=runs/demo --step=best --format=safetensors --out=shapes.safetensors

safetensors: weights, config and category table; `load_detector`, eval, predict and model.init take it.
stablehlo:   the whole detector for CPU, CUDA and TPU, any number and size of images; jax and flatbuffers run
             it. What its arrays mean, and the classes, stand beside it in OUT.json.
onnx:        the whole detector for one image of any size; onnxruntime runs it. The same in its metadata.

Beside each stands a model card, OUT.md: data, classes, settings, figures of `iou-det eval` at that step,
commit. It is also in the metadata ("model_card") of safetensors and ONNX.

Both programs take uint8 RGB images [batch, height, width, 3] and return boxes, scores, labels and valid.
"""

import json
from typing import Any

from absl import flags

from iou_det.commands import flags as common
from iou_det.errors import UserError
from iou_det.network import make_model
from iou_det.storage import user_path, write_json, write_whole
from iou_det.weights.card import model_card, write_card
from iou_det.weights.load import read_detector
from iou_det.weights.onnx import to_onnx
from iou_det.weights.program import describe
from iou_det.weights.saved import write_saved
from iou_det.weights.stablehlo import to_stablehlo

WORKDIR = common.trained_workdir()
STEP = common.step()
FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors", "stablehlo", "onnx"], "See above.")
OUT = flags.DEFINE_string("out", None, "File to write.", required=True)
TEST_TIME = common.test_time()


def main() -> None:
  out = user_path(OUT.value, write=True)
  saved = read_detector(WORKDIR.value, STEP.value)
  variant = TEST_TIME(saved.config)
  card = model_card(saved, out.name, FORMAT.value, variant)
  out.parent.mkdir(parents=True, exist_ok=True)
  if FORMAT.value == "safetensors":
    if out.suffix != ".safetensors":
      raise UserError(f"--out={out}: what is to be read again must end in .safetensors")
    write_saved(out, saved, card)
  else:
    model = make_model(saved.config, len(saved.categories))
    if FORMAT.value == "onnx":
      write_whole(out, to_onnx(saved.config, model, saved.variables, saved.categories, card))
    else:
      write_whole(out, to_stablehlo(saved.config, model, saved.variables))
      about: dict[str, Any] = describe(saved.categories)
      about["categories"] = json.loads(about["categories"])
      write_json(out.with_suffix(f"{out.suffix}.json"), about)
  write_card(out, card)
  print(f"{out}: {out.stat().length / 1e6:.1f} MB, {len(saved.categories)} classes, step {saved.step}")
