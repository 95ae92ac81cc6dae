"""Every setting in a line: its default, what is allowed, whether a resumed run may change it. config.json.

The defaults are the paper's recipe (arXiv:1908.05641 on mmdetection 0.6: RetinaNet R50, 1x schedule).
A file in `configs/` starts from `base_config()` and changes what it must.

A field that is added later gets the default that does what the code did before: so older runs stay readable.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict, FieldReference

from iou_det.data import EXIF, NAMES, WHAT_A_PATH_MAY_BE
from iou_det.data.plan import images_per_step
from iou_det.errors import UserError
from iou_det.models import BACKBONES
from iou_det.models.resnet import BLOCKS
from iou_det.ops.anchors import CONVENTIONS
from iou_det.ops.detection import NMS
from iou_det.ops.other_losses import CLASSIFICATION, LOCALIZATION

W_LOC = {0.0: 1.0, 0.5: 1.575, 1.0: 2.226, 1.5: 3.049, 1.8: 3.649}  # Table 4 of arXiv:1908.05641
W_LOC_R101 = 2.878  # the authors' code: lambd 1.5, ResNet-101 at [800,1333]


class Rule(NamedTuple):
  """Which values are allowed: in words, and whether one is."""

  allowed: str
  holds: Callable[[Any], bool]


ANYTHING = Rule("anything", lambda v: True)
ABOVE_0 = Rule("above 0", lambda v: v > 0)
FROM_0 = Rule("0 or more", lambda v: v >= 0)
INT32_FROM_0 = Rule("between 0 and 2147483647", lambda v: 0 <= v < 2**31)
FROM_0_TO_1 = Rule("between 0 and 1", lambda v: 0 <= v <= 1)
ABOVE_0_TO_1 = Rule("above 0 and at most 1", lambda v: 0 < v <= 1)
FROM_0_TO_HALF = Rule("between 0 and 0.5", lambda v: 0 <= v <= 0.5)
FROM_0_BELOW_1 = Rule("at least 0 and below 1", lambda v: 0 <= v < 1)
BETWEEN_0_AND_1 = Rule("between 0 and 1, exclusive", lambda v: 0 < v < 1)
RISING_PAIR = Rule(
  "two numbers above 0, the second not below the first", lambda v: len(v) == 2 and 0 < v[0] <= v[1]
)
NO_OR_STEPS = Rule(
  "() or two whole numbers above 0, the second not below the first",
  lambda v: len(v) == 0 or (RISING_PAIR.holds(v) and all(isinstance(x, int) for x in v)),
)
THREE = Rule("three numbers", lambda v: len(v) == 3)
THREE_ABOVE_0 = Rule("three numbers above 0", lambda v: len(v) == 3 and min(v) > 0)
SOME_ABOVE_0 = Rule("one or more numbers above 0", lambda v: len(v) > 0 and all(0 < x < math.inf for x in v))
SCALES = Rule("one or more numbers from 0.1 to 10", lambda v: len(v) > 0 and all(0.1 <= x <= 10 for x in v))
TRACKERS = ("wandb", "mlflow")
SOME_TRACKERS = Rule(
  f"() or some of {', '.join(map(repr, TRACKERS))}, each once",
  lambda v: isinstance(v, tuple) and len(set(v)) == len(v) and set(v) <= set(TRACKERS),
)
FROM_0_OR_AUTO = Rule(
  '0 or more, or "auto"', lambda v: v == "auto" or (isinstance(v, (int, float)) and v >= 0)
)


def one_of(*choices: Any) -> Rule:
  return Rule(f"one of {', '.join(map(repr, choices))}", lambda v: v in choices)


class Setting(NamedTuple):
  """A field of the config. `runtime`: it changes no number, a run may be resumed with another value."""

  default: Any
  rule: Rule = ANYTHING
  runtime: bool = False


SETTINGS: dict[str, dict[str, Setting]] = {  # lengths in pixels, schedule lengths in epochs
  "": {"seed": Setting(0, INT32_FROM_0)},
  "model": {
    "backbone": Setting("resnet", one_of(*BACKBONES)),
    "depth": Setting(50, one_of(*BLOCKS)),  # of the ResNet
    "width": Setting(64, ABOVE_0),  # channels of the stem; 64 is the standard network
    # Of the ResNet. patchify: one 3x3 convolution on 4x4 blocks of pixels in place of 7x7 and max pooling.
    "stem": Setting("conv7", one_of("conv7", "patchify")),
    "stride_in_1x1": Setting(False),  # of a bottleneck's first convolution, not its 3x3 one (MSRA, Caffe)
    "norm": Setting("frozen_bn", one_of("frozen_bn", "gn")),  # gn: GroupNorm, for training from scratch
    "frozen_stages": Setting(1, one_of(-1, 0, 1, 2, 3, 4)),  # -1: nothing, 0: stem, 1: and first stage, ...
    "init": Setting(""),  # a whole detector to start from: anything that `load_detector` takes
    "pretrained": Setting(""),  # .safetensors, .pth or .pkl in torchvision's layout, or a Hugging Face id
    "fpn_channels": Setting(256, ABOVE_0),
    "head_convs": Setting(4, FROM_0),
    "head_norm": Setting("none", one_of("none", "gn")),
    "iou_branch": Setting(False),  # predicts each box's IoU; scores are sqrt(score * IoU), arXiv:1912.05992
    "min_level": Setting(3, one_of(2, 3, 4, 5)),
    "max_level": Setting(7, one_of(5, 6, 7)),
    "p6_from": Setting("c5", one_of("c5", "p5")),
    "p7_relu": Setting(False),  # ReLU between P6 and P7 (torchvision, detectron2)
    "prior": Setting(0.01, BETWEEN_0_AND_1),  # score that every anchor starts with
    "dtype": Setting("auto", one_of("auto", "float32", "bfloat16")),  # auto: bfloat16 on accelerators
    "remat": Setting(False, runtime=True),  # backward computes the backbone again: less memory, slower
  },
  "anchors": {
    "convention": Setting("legacy", one_of(*CONVENTIONS)),  # see iou_det.ops.anchors; legacy is the paper's
    "scale": Setting(4.0, ABOVE_0),
    "octaves": Setting(3, ABOVE_0),
    "ratios": Setting((0.5, 1.0, 2.0), SOME_ABOVE_0),
  },
  "match": {
    "positive_iou": Setting(0.5, ABOVE_0_TO_1),
    "negative_iou": Setting(0.4, ABOVE_0_TO_1),
    "force_match": Setting(True),
    "min_forced_iou": Setting(0.0, FROM_0_TO_1),
    "forced_target": Setting("box", one_of("box", "best")),  # of a forced anchor: who forces it, or its best
  },
  "loss": {
    "classification": Setting("focal", one_of(*CLASSIFICATION)),
    "w_cls": Setting(1.0, ABOVE_0),  # factor of the classification loss
    "alpha": Setting(0.25, FROM_0),  # of positives in the focal loss, of all else in varifocal (0.75 there)
    "gamma": Setting(2.0, FROM_0),
    "eta": Setting(0.0, FROM_0),  # Eq. (1)-(2); 0 is the baseline
    "isr_gamma": Setting(0.0, FROM_0),  # exponent of PISA's classification weights (ISR); 0: none
    "concordance": Setting(0.0, FROM_0),  # factor of the positives' concordance loss; 0: none
    # Of model.iou_branch: whether its target, the IoU, gets a gradient too.
    "iou_target": Setting("detached", one_of("detached", "attached")),
    "localization": Setting("smooth_l1", one_of(*LOCALIZATION)),
    "delta": Setting(0.11, ABOVE_0),  # where smooth L1 and balanced L1 turn
    "lambd": Setting(0.0, FROM_0),  # Eq. (3)-(4); 0 is the baseline
    # Factor of the localization loss; auto: fitted at the start, see `iou-det fit-wloc`.
    "w_loc": Setting(1.0, FROM_0_OR_AUTO),
    "loc_weights": Setting("eq4", one_of("eq4", "eq5")),  # eq5: the normalised weights
    "normalizer": Setting("global", one_of("global", "level")),  # Eq. (2), (5): over the batch, or by level
    "average": Setting("batch", one_of("batch", "image")),  # over all positives, or first by image
    # Images that follow one another in the batch and whose losses, Eq. (2) and (5) included, are summed and
    # divided by themselves, as a GPU's are in mmdetection; then the mean over the groups. 0: the whole batch.
    "group": Setting(0, FROM_0),
  },
  "data": {
    "path": Setting("", runtime=True),
    "format": Setting(
      "auto", one_of("auto", *NAMES), runtime=True
    ),  # of what is at the path; auto: by looking
    # Whether pictures are turned as their EXIF says; auto: unless the annotated sizes are those as stored.
    "exif": Setting("auto", one_of(*EXIF)),
    "skip_bad": Setting(False),  # drop bad records and pictures of a folder (all are opened), and say which
    "train_split": Setting("train"),
    "val_split": Setting("val"),
    "val_annotations": Setting("", runtime=True),  # original annotation file to score against
    "short": Setting(800, ABOVE_0),
    "long": Setting(1333, ABOVE_0),
    "rounding": Setting("round", one_of("round", "floor")),  # sides of a resized image; floor: torchvision
    "canvas": Setting((800, 1333), RISING_PAIR),  # sides of the uint8 canvas that images are decoded into
    "max_boxes": Setting(100, ABOVE_0),
    "mean": Setting((123.675, 116.28, 103.53), THREE),
    "std": Setting((58.395, 57.12, 57.375), THREE_ABOVE_0),
    "min_image_side": Setting(32),
    "min_box_side": Setting(1.0),
    "keep_empty": Setting(False),  # train on images without boxes
    "flip_horizontal": Setting(0.5, FROM_0_TO_1),
    "flip_vertical": Setting(0.0, FROM_0_TO_1),
    "transpose": Setting(0.0, FROM_0_TO_1),
    "scale_jitter": Setting((1.0, 1.0), RISING_PAIR),
    # Colours as torchvision's ColorJitter: b changes by a factor in [max(0, 1 - b), 1 + b], hue by up to so
    # many turns of the colour circle.
    "brightness": Setting(0.0, FROM_0),
    "contrast": Setting(0.0, FROM_0),
    "saturation": Setting(0.0, FROM_0),
    "hue": Setting(0.0, FROM_0_TO_HALF),
    # Images with a class that fewer than this share of all have come more often (LVIS's rule); 0: off.
    "repeat_threshold": Setting(0.0, FROM_0_TO_1),
    "threads": Setting(0, FROM_0, runtime=True),  # that read and decode; 0: two more than there are cores
    "workers": Setting(0, FROM_0, runtime=True),  # processes in place of threads (they need shared memory)
  },
  "train": {
    "batch_size": Setting(16, ABOVE_0),  # images that the devices work on at once
    "accumulate": Setting(1, ABOVE_0),  # so many times as many are a step's whole batch
    "epochs": Setting(12, ABOVE_0),
    "learning_rate": Setting(0.01, ABOVE_0),  # for 16 images; scaled by images of a step / 16
    "optimizer": Setting("sgd", one_of("sgd", "adamw", "muon")),
    "momentum": Setting(0.9, FROM_0_BELOW_1),  # of SGD; AdamW's beta 1
    "beta2": Setting(0.999, FROM_0_BELOW_1),  # AdamW's
    "weight_decay": Setting(1e-4, FROM_0),
    "warmup_steps": Setting(500, FROM_0),
    "warmup_factor": Setting(1 / 3, ABOVE_0_TO_1),
    "schedule": Setting("step", one_of("step", "cosine")),
    "decay_epochs": Setting((8, 11)),
    "decay_factor": Setting(0.1, ABOVE_0_TO_1),
    "clip_norm": Setting(35.0, ABOVE_0),
    "ema": Setting(0.0, FROM_0_BELOW_1),  # decay of the parameters' average, which is then scored; 0: none
    "log_every": Setting(50, ABOVE_0, runtime=True),
    "diagnostics_every": Setting(0, FROM_0, runtime=True),  # steps between them; 0: never
    "eval_epochs": Setting(1, ABOVE_0, runtime=True),  # evaluate every so many epochs, and at the end
    "checkpoint_epochs": Setting(1, ABOVE_0, runtime=True),
    "checkpoint_minutes": Setting(10.0, ABOVE_0, runtime=True),  # and so long after the last at latest
    "keep_checkpoints": Setting(2, ABOVE_0, runtime=True),  # the last so many, and the one with the best AP
    "stop_after": Setting(0, FROM_0, runtime=True),  # evaluations without a better AP; 0: never
    "log_to": Setting((), SOME_TRACKERS, runtime=True),  # beside metrics.jsonl and TensorBoard
    "hang_minutes": Setting(30.0, ABOVE_0, runtime=True),  # without a step: show stacks, exit with 75
    "profile_steps": Setting((), NO_OR_STEPS, runtime=True),  # first and last step that are profiled
  },
  "eval": {
    "batch_size": Setting(16, ABOVE_0, runtime=True),
    # What scores during training; auto: hotcoco where it is installed. `iou-det eval` has a flag.
    "backend": Setting("auto", one_of("auto", "pycocotools", "hotcoco"), runtime=True),
    "score_threshold": Setting(0.05, FROM_0_TO_1),
    "candidates_per_level": Setting(1000, ABOVE_0),
    # Soft-NMS: linear, gaussian; none: what would enter NMS, for analysis.
    "nms": Setting("hard", one_of(*NMS)),
    "nms_iou": Setting(0.5, FROM_0_TO_1),
    "class_agnostic": Setting(False),  # a box counts once, by its best class; classes suppress each other
    "max_detections": Setting(100, ABOVE_0),
    # Views of an image whose candidates enter one NMS: at these factors of short and long, and each mirrored.
    "tta_scales": Setting((1.0,), SCALES),
    "tta_flip": Setting(False),
  },
  "own": {  # what configs/own.py was asked for; empty: another config
    "size": Setting("", one_of("", "small", "medium")),
    "device": Setting("", one_of("", "cpu", "gpu")),
    "minutes": Setting(0.0, Rule("0 or more, and finite", lambda v: 0 <= v < math.inf)),
  },
}
FIELDS = {
  f"{section}.{name}".lstrip("."): s for section, rows in SETTINGS.items() for name, s in rows.items()
}


def base_config() -> ConfigDict:
  """The paper's RetinaNet."""
  config = ConfigDict()
  for section, settings in SETTINGS.items():
    values = {name: setting.default for name, setting in settings.items()}
    if section == "loss":
      values["w_loc"] = FieldReference(values["w_loc"], field_type=object)  # a number or "auto"
    config.update(values if not section else {section: values})
  return config


def validate(config: ConfigDict) -> None:
  """Checks every field, then what must fit together; raises a UserError naming the field."""
  for name in FIELDS:
    check_field(name, get_field(config, name))
  match, loss, data = config.match, config.loss, config.data
  if match.negative_iou > match.positive_iou:
    raise UserError(
      f"config.match.negative_iou={match.negative_iou}, config.match.positive_iou={match.positive_iou}: "
      "must be 0 < negative_iou <= positive_iou <= 1"
    )
  if loss.localization != "smooth_l1" and loss.w_loc in (*list(W_LOC.values())[1:], W_LOC_R101):
    raise UserError(
      f"config.loss.w_loc={loss.w_loc} is the paper's for smooth L1, not for "
      f"config.loss.localization={loss.localization}; give --config.loss.w_loc=auto or a number of your own"
    )
  if loss.classification.startswith("varifocal") and loss.alpha == 0.25:
    raise UserError(
      "config.loss.alpha=0.25 is the focal loss's, not for config.loss.classification="
      f"{loss.classification}, where it weighs all but positives; give --config.loss.alpha=0.75 (its "
      "authors') or a number of your own"
    )
  if loss.classification == "quality_focal" and loss.gamma < 1:
    raise UserError(
      f"config.loss.gamma={loss.gamma}: must be 1 or more for config.loss.classification=quality_focal: "
      "below, its slope is infinite where a score is right"
    )
  if loss.iou_target != "detached" and not config.model.iou_branch:
    raise UserError(
      f"config.loss.iou_target={loss.iou_target} is of an IoU branch; give --config.model.iou_branch=True too"
    )
  images = {"a step": images_per_step(config.train), "an evaluation's batch": config.eval.batch_size}
  for what, number in images.items():
    if loss.group and number % loss.group:
      raise UserError(
        f"config.loss.group={loss.group} does not divide the {number} images of {what}; allowed are 0 (all "
        f"together) and divisors of {number}, or change config.train.batch_size or config.eval.batch_size"
      )
  if not data.path:
    raise UserError(f"config.data.path is empty: give {WHAT_A_PATH_MAY_BE}")
  if data.short > data.long:
    raise UserError(f"config.data.short={data.short} exceeds config.data.long={data.long}")
  if data.transpose and padded(data.short) != padded(data.long):
    raise UserError(
      f"config.data.transpose={data.transpose} needs a square input, got short={data.short}, "
      f"long={data.long}; make them equal or set transpose to 0"
    )


def check_field(name: str, value: Any) -> None:
  """Raises a UserError if a field ("eval.nms_iou") may not have this value."""
  rule = FIELDS[name].rule
  try:
    holds = rule.holds(value)
  except TypeError:  # text where a number belongs
    holds = False
  if not holds:
    raise UserError(f"config.{name}={value!r}: must be {rule.allowed}")


def padded(side: int) -> int:
  """The next multiple of 32 (pixels): the network's input is padded to it."""
  return -(-side // 32) * 32


def input_size(config: ConfigDict, portrait: bool) -> tuple[int, int]:
  """Height and width (pixels) of the network's input for a batch of one orientation."""
  short, long = padded(config.data.short), padded(config.data.long)
  return (long, short) if portrait else (short, long)


def evaluation_views(config: ConfigDict) -> list[tuple[ConfigDict, bool]]:
  """The views of an image that are detected on: a config with the view's short and long side, and whether it
  is mirrored. One, as the config says, without test-time augmentation."""
  views = []
  for factor in config.eval.tta_scales:
    scaled = ConfigDict(config.to_dict())
    for side in ("short", "long"):
      scaled.data[side] = max(1, round(config.data[side] * factor))
    views += [(scaled, flip) for flip in ((False, True) if config.eval.tta_flip else (False,))]
  return views


def strides(config: ConfigDict) -> tuple[int, ...]:
  return tuple(2**level for level in range(config.model.min_level, config.model.max_level + 1))


def to_choose(config: ConfigDict) -> list[str]:
  """The fields that configs/own.py leaves to be chosen by the data: they are None."""
  return [name for name in FIELDS if get_field(config, name) is None]


def with_loss(config: ConfigDict, **changes: Any) -> ConfigDict:
  """A copy of a config with other settings of the loss."""
  config = ConfigDict(config.to_dict())
  with config.ignore_type():  # w_loc is a number or "auto"
    config.loss.update(**changes)
  return config


def get_field(config: ConfigDict, name: str) -> Any:
  """`get_field(config, "a.b")` is `config.a.b`."""
  for part in name.split("."):
    config = config[part]
  return config


def from_dict(values: Any) -> ConfigDict:
  """A config from the content of a config.json (lists become tuples again)."""

  def tuples(value):
    if isinstance(value, dict):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value

  if not isinstance(values, dict):
    raise UserError("config.json holds no settings; restore it, or train in a new --workdir")
  if set(values.pop("mesh", {}).values()) - {1}:  # of an earlier version
    logging.info("config.json's mesh.fsdp and mesh.space are gone; they changed no number")
  lacking = []
  for name, setting in FIELDS.items():  # of an earlier version: it did what the default says
    section, _, field = name.rpartition(".")
    node = values.setdefault(section, {}) if section else values
    if field not in node:
      node[field] = setting.default
      lacking.append(name)
  if lacking:
    logging.info("config.json lacks, and gets the defaults of: %s", ", ".join(lacking))
  config = ConfigDict(tuples(values))
  if config.loss.localization == "ghm_r":
    raise UserError(
      "config.loss.localization='ghm_r' is an earlier version's: evaluate this run with the version that "
      f"trained it, or train anew with one of {', '.join(map(repr, LOCALIZATION))}"
    )
  for name in FIELDS:
    check_field(name, get_field(config, name))
  return config


def training_differences(a: ConfigDict, b: ConfigDict) -> list[str]:
  """`differences` in the settings that change a number."""
  runtime = {name for name, setting in FIELDS.items() if setting.runtime}
  return [line for line in differences(a, b) if line.split(":")[0] not in runtime]


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
  """`field: value in a != value in b` for every field that differs, fields in one only included."""

  def flat(node, prefix=""):
    for name, value in node.items():
      if isinstance(value, dict):
        yield from flat(value, f"{prefix}{name}.")
      else:
        yield prefix + name, value

  # Through JSON: tuples and lists, 1 and 1.0 are the same setting.
  left, right = (dict(flat(json.loads(json.dumps(c.to_dict())))) for c in (a, b))
  names = sorted(left.keys() | right.keys())
  return [f"{n}: {left.get(n)!r} != {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]
