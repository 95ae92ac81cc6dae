"""Every setting in a line: its default, what is allowed, whether a resumed run may change it. config.json.

The defaults are the paper's recipe (arXiv:1908.05641 on mmdetection 0.6: RetinaNet R50, 1x schedule).
A file in `configs/` starts from `base_config()` and changes what it must.

A field that is added later gets the default that does what the code did before: so older runs stay readable.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from iou_det.errors import UserError
from iou_det.models import BACKBONES
from iou_det.ops.anchors import CONVENTIONS
from iou_det.ops.other_losses import CLASSIFICATION, LOCALIZATION

W_LOC = {0.0: 1.0, 0.5: 1.575, 1.0: 2.226, 1.5: 3.049, 1.8: 3.649}  # Table 4 of arXiv:1908.05641
W_LOC_R101 = 2.878  # the authors' code: lambd 1.5, ResNet-101 at [800,1333]


class Setting(NamedTuple):
  """A field of the config.

  Attributes:
    allowed: for the message when `holds` is False.
    runtime: a run may be resumed with another value: it changes no number.
  """

  default: Any
  allowed: str
  holds: Callable[[Any], bool]
  runtime: bool = False


def anything(default: Any, runtime: bool = False) -> Setting:
  return Setting(default, "", lambda v: True, runtime)


def one_of(default: Any, choices: Iterable[Any], runtime: bool = False) -> Setting:
  choices = tuple(choices)
  return Setting(default, f"one of {', '.join(map(repr, choices))}", lambda v: v in choices, runtime)


def above_0(default: int | float, runtime: bool = False) -> Setting:
  return Setting(default, "above 0", lambda v: v > 0, runtime)


def from_0(default: int | float, runtime: bool = False) -> Setting:
  return Setting(default, "0 or more", lambda v: v >= 0, runtime)


def from_0_to_1(default: int | float) -> Setting:
  return Setting(default, "between 0 and 1", lambda v: 0 <= v <= 1)


def between_0_and_1(default: int | float) -> Setting:
  return Setting(default, "between 0 and 1, exclusive", lambda v: 0 < v < 1)


def factor(default: int | float) -> Setting:
  return Setting(default, "above 0 and at most 1", lambda v: 0 < v <= 1)


def rising_pair(default: tuple[int | float, int | float]) -> Setting:
  allowed = "two numbers above 0, the second not below the first"
  return Setting(default, allowed, lambda v: len(v) == 2 and 0 < v[0] <= v[1])


def is_w_loc(value: Any) -> bool:
  return value == "auto" or (isinstance(value, (int, float)) and value >= 0)


SETTINGS: dict[str, dict[str, Setting]] = {  # lengths in pixels, schedule lengths in epochs
  "": {
    "seed": anything(0),
  },
  "model": {
    "backbone": one_of("resnet", BACKBONES),
    "depth": one_of(50, (18, 34, 50, 101)),  # of the ResNet
    "width": above_0(64),  # channels of the stem; 64 is the standard network
    "norm": one_of("frozen_bn", ("frozen_bn", "gn")),  # gn: GroupNorm, for training from scratch
    "frozen_stages": one_of(1, (-1, 0, 1, 2, 3, 4)),  # -1: nothing, 0: stem, 1: stem and first stage, ...
    "pretrained": anything(""),  # .safetensors or .pth in torchvision's layout, or a Hugging Face id
    "fpn_channels": above_0(256),
    "head_convs": from_0(4),
    "head_norm": one_of("none", ("none", "gn")),
    "min_level": one_of(3, (3, 4, 5)),
    "max_level": one_of(7, (5, 6, 7)),
    "p6_from": one_of("c5", ("c5", "p5")),
    "p7_relu": anything(False),  # ReLU between P6 and P7 (torchvision, detectron2)
    "prior": between_0_and_1(0.01),  # score that every anchor starts with
    "dtype": one_of("auto", ("auto", "float32", "bfloat16")),  # auto: bfloat16 on accelerators
    "remat": anything(
      False, runtime=True
    ),  # the backward pass computes the backbone again: less memory, slower
  },
  "anchors": {
    "convention": one_of("legacy", CONVENTIONS),  # see iou_det.ops.anchors; legacy is the paper's
    "scale": above_0(4.0),
    "octaves": above_0(3),
    "ratios": Setting((0.5, 1.0, 2.0), "one or more numbers above 0", lambda v: len(v) > 0 and min(v) > 0),
  },
  "match": {
    "positive_iou": factor(0.5),
    "negative_iou": factor(0.4),
    "force_match": anything(True),
    "min_forced_iou": from_0_to_1(0.0),
  },
  "loss": {
    "classification": one_of("focal", CLASSIFICATION),
    "alpha": from_0(0.25),
    "gamma": from_0(2.0),
    "eta": from_0(0.0),  # Eq. (1)-(2); 0 is the baseline
    "isr_gamma": from_0(0.0),  # exponent of PISA's classification weights (ISR); 0: none
    "localization": one_of("smooth_l1", LOCALIZATION),
    "delta": above_0(0.11),  # where smooth L1 and balanced L1 turn
    "lambd": from_0(0.0),  # Eq. (3)-(4); 0 is the baseline
    # Factor of the localization loss; auto: fitted at the start, see `iou-det fit-wloc`.
    "w_loc": Setting(1.0, '0 or more, or "auto"', is_w_loc),
    "loc_weights": one_of("eq4", ("eq4", "eq5")),  # eq5: the normalised weights
    "normalizer": one_of("global", ("global", "level")),  # sums of Eq. (2) and (5): batch, or pyramid level
  },
  "data": {
    "path": anything("", runtime=True),
    "train_split": anything("train"),
    "val_split": anything("val"),
    "val_annotations": anything("", runtime=True),  # original annotation file to score against
    "short": above_0(800),
    "long": above_0(1333),
    "canvas": rising_pair((800, 1333)),  # sides of the uint8 canvas that images are decoded into
    "max_boxes": above_0(100),
    "mean": Setting((123.675, 116.28, 103.53), "three numbers", lambda v: len(v) == 3),
    "std": Setting((58.395, 57.12, 57.375), "three numbers above 0", lambda v: len(v) == 3 and min(v) > 0),
    "min_image_side": anything(32),
    "min_box_side": anything(1.0),
    "keep_empty": anything(False),  # train on images without boxes
    "flip_horizontal": from_0_to_1(0.5),
    "flip_vertical": from_0_to_1(0.0),
    "transpose": from_0_to_1(0.0),
    "scale_jitter": rising_pair((1.0, 1.0)),
    "threads": from_0(0, runtime=True),  # that read and decode; 0: two more than this process has cores
    "workers": from_0(0, runtime=True),  # worker processes in place of threads (they need shared memory)
  },
  "train": {
    "batch_size": above_0(16),
    "epochs": above_0(12),
    "learning_rate": above_0(0.01),  # for 16 images; scaled by batch_size / 16
    "momentum": Setting(0.9, "at least 0 and below 1", lambda v: 0 <= v < 1),
    "weight_decay": from_0(1e-4),
    "warmup_steps": from_0(500),
    "warmup_factor": factor(1 / 3),
    "schedule": one_of("step", ("step", "cosine")),
    "decay_epochs": anything((8, 11)),
    "decay_factor": factor(0.1),
    "clip_norm": above_0(35.0),
    "log_every": above_0(50, runtime=True),
    "diagnostics_every": from_0(
      0, runtime=True
    ),  # steps between measurements of the gradient's origin; 0: never
    "eval_epochs": above_0(1, runtime=True),  # evaluate every so many epochs, and at the end
    "checkpoint_epochs": above_0(1, runtime=True),
    "keep_checkpoints": above_0(2, runtime=True),  # the last so many, and the one with the best AP
  },
  "eval": {
    "batch_size": above_0(16, runtime=True),
    "score_threshold": from_0_to_1(0.05),
    "candidates_per_level": above_0(1000),
    # Soft-NMS: linear, gaussian; none: what would enter NMS, for analysis.
    "nms": one_of("hard", ("hard", "linear", "gaussian", "none")),
    "nms_iou": from_0_to_1(0.5),
    "max_detections": above_0(100),
  },
  "mesh": {  # devices along these axes; the batch is split over all that `space` leaves
    "fsdp": above_0(1, runtime=True),  # parameters and optimizer state split over so many
    "space": one_of(1, (1, 2, 4, 8), runtime=True),  # height of the images split over so many
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
  for name, setting in FIELDS.items():
    value = get_field(config, name)
    if not setting.holds(value):
      raise UserError(f"config.{name}={value!r}: must be {setting.allowed}")
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
  if not data.path:
    raise UserError('config.data.path is empty: give a prepared dataset, a COCO folder or "shapes"')
  if data.short > data.long:
    raise UserError(f"config.data.short={data.short} exceeds config.data.long={data.long}")
  # XLA's partitioned gradient of a strided convolution is wrong where a device has less than a row.
  rows = -(-padded(data.short) // 2 ** (config.model.max_level - 1))
  if 1 < config.mesh.space >= rows:
    raise UserError(
      f"config.mesh.space={config.mesh.space}: must be below {rows}, the rows of the last level but one at "
      f"data.short={data.short}"
    )
  if data.transpose and padded(data.short) != padded(data.long):
    raise UserError(
      f"config.data.transpose={data.transpose} needs a square input, got short={data.short}, "
      f"long={data.long}; make them equal or set transpose to 0"
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
  for name, setting in FIELDS.items():  # of an earlier version: it did what the default says
    section, _, field = name.rpartition(".")
    if section and section not in config:
      config[section] = ConfigDict()
    node = config[section] if section else config
    if field not in node:
      node[field] = setting.default
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
  left, right = (dict(flat(json.loads(to_json(c)))) for c in (a, b))
  names = sorted(left.keys() | right.keys())
  return [f"{n}: {left.get(n)!r} != {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]
