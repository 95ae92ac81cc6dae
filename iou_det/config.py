"""Every setting with its default, what is allowed, and config.json.

The defaults are the paper's recipe (arXiv:1908.05641 on mmdetection 0.6: RetinaNet R50, 1x schedule).
A file in `configs/` starts from `base_config()` and changes what it must.
"""

import json
from typing import Any

from ml_collections import ConfigDict, FieldReference

from iou_det.errors import UserError

# May differ between the run that wrote a workdir and the one that resumes it: they change no number.
RUNTIME_FIELDS = (
  "data.path",
  "data.val_annotations",
  "data.threads",
  "data.workers",
  "train.log_every",
  "train.diagnostics_every",
  "train.eval_epochs",
  "train.checkpoint_epochs",
  "train.keep_checkpoints",
  "eval.batch_size",
  "mesh.fsdp",
  "mesh.space",
  "model.remat",
)


def base_config() -> ConfigDict:
  """The paper's RetinaNet; lengths in pixels, schedule lengths in epochs."""
  return ConfigDict(
    {
      "seed": 0,
      "model": {
        "depth": 50,  # ResNet-18, 34, 50 or 101
        "width": 64,  # channels of the stem; 64 is the standard network
        "norm": "frozen_bn",  # or "gn" (GroupNorm, for training from scratch)
        "frozen_stages": 1,  # -1: nothing, 0: stem, 1: stem and first stage
        "pretrained": "",  # .safetensors or .pth in torchvision's layout, or a Hugging Face id
        "fpn_channels": 256,
        "head_convs": 4,
        "head_norm": "none",  # or "gn"
        "min_level": 3,
        "max_level": 7,
        "p6_from": "c5",  # or "p5"
        "p7_relu": False,  # ReLU between P6 and P7 (torchvision, detectron2)
        "prior": 0.01,
        "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU
        "remat": False,  # compute the backbone's activations again in the backward pass: less memory, slower
      },
      "anchors": {
        "convention": "legacy",  # mmdetection 0.6; or "modern" (detectron2, mmdetection 2+), "torchvision"
        "scale": 4.0,
        "octaves": 3,
        "ratios": (0.5, 1.0, 2.0),  # height / width
      },
      "match": {"positive_iou": 0.5, "negative_iou": 0.4, "force_match": True, "min_forced_iou": 0.0},
      "loss": {
        "alpha": 0.25,
        "gamma": 2.0,
        "delta": 0.11,
        "eta": 0.0,  # Eq. (1)-(2); 0 is the baseline
        "lambd": 0.0,  # Eq. (3)-(4); 0 is the baseline
        # factor of the localization loss; "auto": fitted at the start, see `iou-det fit-wloc`
        "w_loc": FieldReference(1.0, field_type=object),
        "loc_weights": "eq4",  # or "eq5": the normalised weights
        "localization": "smooth_l1",  # or "balanced_l1", "bounded_iou", "ghm_r"
        "isr_gamma": 0.0,  # exponent of PISA's classification weights (ISR); 0: none
        "normalizer": "global",  # sums of Eq. (2) and (5): the whole batch, or "level" (each pyramid level)
      },
      "data": {
        "path": "",  # "shapes", a dataset made by `prepare` or TFDS, or a COCO folder
        "train_split": "train",
        "val_split": "val",
        "val_annotations": "",  # original annotation file to score against
        "short": 800,
        "long": 1333,
        "canvas": (800, 1333),  # short and long side of the uint8 canvas that images are decoded into
        "max_boxes": 100,
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
        "min_image_side": 32,
        "min_box_side": 1.0,
        "keep_empty": False,  # train on images without boxes
        "flip_horizontal": 0.5,
        "flip_vertical": 0.0,
        "transpose": 0.0,
        "scale_jitter": (1.0, 1.0),
        "threads": 0,  # that read and decode; 0: two more than this process has cores
        "workers": 0,  # worker processes (in place of threads; they need shared memory); 0: threads
      },
      "train": {
        "batch_size": 16,
        "epochs": 12,
        "learning_rate": 0.01,  # for 16 images; scaled by batch_size / 16
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_steps": 500,
        "warmup_factor": 1 / 3,
        "schedule": "step",  # or "cosine"
        "decay_epochs": (8, 11),
        "decay_factor": 0.1,
        "clip_norm": 35.0,
        "log_every": 50,
        "diagnostics_every": 0,  # steps between measurements of where the gradient comes from; 0: never
        "eval_epochs": 1,  # evaluate every so many epochs, and at the end
        "checkpoint_epochs": 1,
        "keep_checkpoints": 2,  # the last so many, and the one with the best AP
      },
      "eval": {
        "batch_size": 16,
        "score_threshold": 0.05,
        "candidates_per_level": 1000,
        "nms": "hard",  # or "linear", "gaussian" (soft-NMS), "none" (what enters NMS, for analysis)
        "nms_iou": 0.5,
        "max_detections": 100,
      },
      "mesh": {  # devices along these axes; the batch is split over all that `space` leaves
        "fsdp": 1,  # parameters and optimizer state split over so many
        "space": 1,  # height of the images split over so many
      },
    }
  )


CHOICES = {
  "model.depth": (18, 34, 50, 101),
  "model.norm": ("frozen_bn", "gn"),
  "model.frozen_stages": (-1, 0, 1, 2, 3, 4),
  "model.head_norm": ("none", "gn"),
  "model.p6_from": ("c5", "p5"),
  "model.dtype": ("auto", "float32", "bfloat16"),
  "anchors.convention": ("legacy", "modern", "torchvision"),
  "loss.loc_weights": ("eq4", "eq5"),
  "loss.localization": ("smooth_l1", "balanced_l1", "bounded_iou", "ghm_r"),
  "loss.normalizer": ("global", "level"),
  "train.schedule": ("step", "cosine"),
  "eval.nms": ("hard", "linear", "gaussian", "none"),
  "mesh.space": (1, 2, 4, 8),  # divide every padded height
}
POSITIVE = (
  "model.width",
  "model.fpn_channels",
  "anchors.scale",
  "anchors.octaves",
  "loss.delta",
  "data.short",
  "data.long",
  "data.max_boxes",
  "train.batch_size",
  "train.epochs",
  "train.learning_rate",
  "train.clip_norm",
  "train.log_every",
  "train.eval_epochs",
  "train.checkpoint_epochs",
  "train.keep_checkpoints",
  "eval.batch_size",
  "eval.candidates_per_level",
  "eval.max_detections",
  "mesh.fsdp",
)
NOT_NEGATIVE = (
  "loss.eta",
  "loss.lambd",
  "loss.isr_gamma",
  "loss.alpha",
  "loss.gamma",
  "data.threads",
  "data.workers",
  "model.head_convs",
  "train.weight_decay",
  "train.warmup_steps",
  "train.diagnostics_every",
)
PROBABILITIES = (
  "data.flip_horizontal",
  "data.flip_vertical",
  "data.transpose",
  "eval.score_threshold",
  "eval.nms_iou",
)


def validate(config: ConfigDict) -> None:
  """Checks every value that has a closed set or a range; raises a UserError naming the field."""

  def check(names, holds, allowed):
    for name in names:
      value = get_field(config, name)
      if not holds(value):
        raise UserError(f"config.{name}={value!r}: must be {allowed}")

  for name, choices in CHOICES.items():
    check([name], lambda v, c=choices: v in c, f"one of {', '.join(map(repr, choices))}")
  check(POSITIVE, lambda v: v > 0, "above 0")
  check(NOT_NEGATIVE, lambda v: v >= 0, "0 or more")
  check(PROBABILITIES, lambda v: 0 <= v <= 1, "between 0 and 1")
  number = lambda v: isinstance(v, (int, float)) and v >= 0
  check(("loss.w_loc",), lambda v: v == "auto" or number(v), '0 or more, or "auto"')
  pair = lambda v: len(v) == 2 and 0 < v[0] <= v[1]
  check(("data.canvas", "data.scale_jitter"), pair, "two numbers above 0, the second not below the first")
  check(("data.mean",), lambda v: len(v) == 3, "three numbers")
  check(("data.std",), lambda v: len(v) == 3 and min(v) > 0, "three numbers above 0")
  check(("anchors.ratios",), lambda v: len(v) > 0 and min(v) > 0, "one or more numbers above 0")
  check(("model.prior",), lambda v: 0 < v < 1, "between 0 and 1, exclusive")
  check(("train.momentum",), lambda v: 0 <= v < 1, "at least 0 and below 1")
  check(("train.warmup_factor", "train.decay_factor"), lambda v: 0 < v <= 1, "above 0 and at most 1")
  match = config.match
  if not 0 < match.negative_iou <= match.positive_iou <= 1:
    raise UserError(
      f"config.match.negative_iou={match.negative_iou}, config.match.positive_iou={match.positive_iou}: "
      "must be 0 < negative_iou <= positive_iou <= 1"
    )
  if not config.data.path:
    raise UserError('config.data.path is empty: give a prepared dataset, a COCO folder or "shapes"')
  if config.data.short > config.data.long:
    raise UserError(f"config.data.short={config.data.short} exceeds config.data.long={config.data.long}")
  if not 3 <= config.model.min_level <= 5 <= config.model.max_level <= 7:
    raise UserError(
      f"config.model.min_level={config.model.min_level}, config.model.max_level={config.model.max_level}: "
      "allowed are 3..5 and 5..7"
    )
  # XLA's partitioned gradient of a strided convolution is wrong where a device has less than a row.
  rows = -(-padded(config.data.short) // 2 ** (config.model.max_level - 1))
  if 1 < config.mesh.space >= rows:
    raise UserError(
      f"config.mesh.space={config.mesh.space}: must be below {rows}, the rows of the last level but one at "
      f"data.short={config.data.short}"
    )
  if config.data.transpose and padded(config.data.short) != padded(config.data.long):
    raise UserError(
      f"config.data.transpose={config.data.transpose} needs a square input, got short={config.data.short}, "
      f"long={config.data.long}; make them equal or set transpose to 0"
    )


def padded(side: int) -> int:
  """The next multiple of 32 (pixels): the network's input is padded to it."""
  return -(-side // 32) * 32


def input_size(config: ConfigDict, portrait: bool) -> tuple[int, int]:
  """Height and width (pixels) of the network's input for a batch of one orientation."""
  short, long = padded(config.data.short), padded(config.data.long)
  return (long, short) if portrait else (short, long)


def strides(config: ConfigDict) -> tuple[int, ...]:
  return tuple(2**level for level in range(config.model.min_level, config.model.max_level + 1))


W_LOC = {0.0: 1.0, 0.5: 1.575, 1.0: 2.226, 1.5: 3.049, 1.8: 3.649}  # Table 4 of arXiv:1908.05641


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


def to_json(config: ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
  """A config as `to_json` wrote it (lists become tuples again)."""

  def tuples(value):
    if isinstance(value, dict):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value

  try:
    config = ConfigDict(tuples(json.loads(text)))
  except ValueError as error:
    raise UserError(f"config.json is damaged ({error}); restore it, or train in a new --workdir") from None
  defaults = base_config()
  missing = [line.split(":")[0] for line in differences(defaults, config) if line.endswith("!= None")]
  if set(missing) - set(RUNTIME_FIELDS):
    raise UserError(
      f"config.json lacks the fields {', '.join(missing)}; it is of another version, train in a new --workdir"
    )
  for name in missing:  # of an earlier version; they change no number
    section, field = name.split(".")
    if section not in config:
      config[section] = ConfigDict()
    config[section][field] = defaults[section][field]
  return config


def training_differences(a: ConfigDict, b: ConfigDict) -> list[str]:
  """`differences` in the settings that change a number, see RUNTIME_FIELDS."""
  return [line for line in differences(a, b) if line.split(":")[0] not in RUNTIME_FIELDS]


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
  """`field: value in a != value in b` for every field that differs, fields in one only included."""

  def flat(node, prefix=""):
    for name, value in node.items():
      if isinstance(value, dict):
        yield from flat(value, f"{prefix}{name}.")
      else:
        yield prefix + name, value

  # Through JSON: tuples and lists, 1 and 1.0 are the same setting.
  left, right = (dict(flat(json.loads(to_json(c)))) for c in (a, b))
  names = sorted(left.keys() | right.keys())
  return [f"{n}: {left.get(n)!r} != {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]
