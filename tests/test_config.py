"""Config files, arguments and overrides: what is accepted, and that errors name what is allowed."""

import json
import runpy
from pathlib import Path

import pytest

from iou_det import config as config_lib
from iou_det.config import base_config, differences, from_dict, to_choose, validate, with_loss
from iou_det.config_args import check_command_line, parse_arg
from iou_det.errors import UserError
from iou_det.ops.other_losses import LOCALIZATION

CONFIGS = Path(__file__).parent.parent / "configs"


def shapes_config():
  config = base_config()
  config.data.path = "shapes"
  return config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.name)
def test_every_config_loads_and_is_valid(path):
  needed = {"finetune.py": f"init={CONFIGS.parent / 'tests/golden/workdir'}"}
  config = runpy.run_path(str(path))["get_config"](needed.get(path.name, ""))
  config.data.path = config.data.path or "some/folder"
  if not to_choose(config):  # by the data
    validate(config)
  assert set(config) == set(base_config())


def test_parse_arg_is_strict():
  assert parse_arg("eta=0.5", eta=1.5, backbone="r50") == {"eta": 0.5, "backbone": "r50"}
  with pytest.raises(UserError, match=r"'etta=1'.*known.*eta=1.5"):
    parse_arg("etta=1", eta=1.5)
  with pytest.raises(UserError, match="not a number"):
    parse_arg("eta=high", eta=1.5)
  with pytest.raises(UserError, match="known"):
    parse_arg("eta", eta=1.5)


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("", ("eta", 1.5, "w_loc", 3.049)),
    ("lambd=0.5", ("lambd", 0.5, "w_loc", 1.575)),
    ("backbone=r101,short=800", ("w_loc", 2.878)),
    ("lambd=0,eta=0", ("eta", 0.0, "w_loc", 1.0)),
    ("lambd=0.7,w_loc=auto", ("w_loc", "auto")),
    ("w_loc=2.5", ("w_loc", 2.5)),
  ],
)
def test_paper_config_takes_w_loc_from_table_4(argument, expected):
  loss = runpy.run_path(str(CONFIGS / "retinanet.py"))["get_config"](argument).loss
  for name, value in zip(expected[::2], expected[1::2], strict=True):
    assert loss[name] == value


@pytest.mark.parametrize("argument", ["backbone=r34", "short=640", "lambd=0.7", "size=600", "w_loc=big"])
def test_paper_config_refuses_other_arguments(argument):
  with pytest.raises(UserError):
    runpy.run_path(str(CONFIGS / "retinanet.py"))["get_config"](argument)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("model.norm", "bn", "'frozen_bn', 'gn'"),
    ("train.batch_size", 0, "above 0"),
    ("loss.eta", -1.0, "0 or more"),
    ("data.flip_vertical", 1.5, "between 0 and 1"),
    ("data.path", "", "prepared dataset"),
    ("data.transpose", 0.5, "square"),
    ("model.max_level", 8, "one of 5, 6, 7"),
    ("model.prior", 1.0, "exclusive"),
    ("match.negative_iou", 0.6, "<= positive_iou"),
    ("data.std", (1.0, 0.0, 1.0), "above 0"),
    ("data.canvas", (640,), "two numbers"),
    ("data.short", 2000, "exceeds"),
    ("data.scale_jitter", (2.0, 1.0), "second not below"),
    ("data.brightness", -0.1, "0 or more"),
    ("data.hue", 0.6, "between 0 and 0.5"),
    ("data.repeat_threshold", 1.5, "between 0 and 1"),
    ("eval.tta_scales", (1.0, 80.0), "one or more numbers from 0.1 to 10"),
    ("eval.tta_scales", (), "one or more numbers from 0.1 to 10"),
    ("match.forced_target", "own", "'box', 'best'"),
    ("loss.average", "level", "'batch', 'image'"),
    ("train.optimizer", "adam", "'sgd', 'adamw', 'muon'"),
    ("train.beta2", 1.0, "below 1"),
    ("train.ema", 1.0, "below 1"),
    ("train.accumulate", 0, "above 0"),
    ("train.stop_after", -1, "0 or more"),
    ("train.log_to", ("wandbb",), r"\(\) or some of 'wandb', 'mlflow', each once"),
    ("train.log_to", ("mlflow", "mlflow"), "each once"),
  ],
)
def test_validate_names_field_and_allowed_values(field, value, message):
  config = shapes_config()
  section, name = field.split(".")
  config[section][name] = value
  with pytest.raises(UserError, match=message) as error:
    validate(config)
  assert field in str(error.value)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_that_a_batch_cannot_hold_are_refused(seed):
  config = shapes_config()
  config.seed = seed
  with pytest.raises(UserError, match=rf"config\.seed={seed}: must be between 0 and 2147483647"):
    validate(config)


def test_json_round_trip_and_differences():
  config = shapes_config()
  again = from_dict(json.loads(json.dumps(config.to_dict())))
  assert again.to_dict() == config.to_dict()
  again.train.epochs = 3
  assert differences(config, again) == ["train.epochs: 12 != 3"]
  validate(again)


@pytest.mark.parametrize(("field", "value"), [("depth", 77), ("width", "much"), ("norm", None)])
def test_values_that_config_json_may_not_have_are_named(field, value):
  values = shapes_config().to_dict()
  values["model"][field] = value
  with pytest.raises(UserError, match=rf"config.model.{field}={value!r}: must be"):
    from_dict(values)


def test_a_run_with_a_loss_that_is_gone_is_refused_with_what_to_do():
  values = json.loads(json.dumps(shapes_config().to_dict()))
  values["loss"]["localization"] = "ghm_r"
  with pytest.raises(
    UserError, match=r"'ghm_r' is an earlier version's.*the version that trained it, or train anew"
  ):
    from_dict(values)


def test_a_config_of_an_earlier_version_gets_the_defaults_of_the_fields_that_it_lacks(caplog):
  config = shapes_config()
  config.loss.eta = 1.5
  old = json.loads(json.dumps(config.to_dict()))
  del old["model"]["remat"], old["loss"]["eta"], old["seed"]
  with caplog.at_level("INFO", logger="absl"):
    read = from_dict(old)
  assert differences(read, config) == ["loss.eta: 0.0 != 1.5"]
  for name in ("seed", "model.remat", "loss.eta"):
    assert name in caplog.text


@pytest.mark.parametrize("localization", [name for name in LOCALIZATION if name != "smooth_l1"])
def test_a_w_loc_of_table_4_is_for_smooth_l1_alone(localization):
  config = with_loss(shapes_config(), lambd=1.5, w_loc=3.049, localization=localization)
  with pytest.raises(UserError, match=rf"w_loc=3\.049.*localization={localization}.*auto or a number"):
    validate(config)
  validate(with_loss(config, w_loc="auto"))
  validate(with_loss(config, w_loc=3.0))


@pytest.mark.parametrize("classification", ["varifocal", "varifocal_unweighted"])
def test_the_focal_loss_s_alpha_is_not_varifocal_s(classification):
  config = with_loss(shapes_config(), classification=classification)
  with pytest.raises(UserError, match=rf"alpha=0\.25.*classification={classification}.*alpha=0\.75"):
    validate(config)
  validate(with_loss(config, alpha=0.75))


def test_command_line_check_names_the_near_field():
  file = f"--config={CONFIGS / 'shapes.py'}"
  check_command_line([file, "--config.train.epochs=3", "--noconfig.match.force_match"])
  with pytest.raises(UserError, match=r"'epoch'; did you mean 'epochs'.*known here: accumulate, batch_size"):
    check_command_line([file, "--config.train.epoch=3"])
  with pytest.raises(UserError, match=r"no such file.*shapes\.py"):
    check_command_line([f"--config={CONFIGS / 'shape.py'}"])
  with pytest.raises(UserError, match="known, with defaults"):
    check_command_line([file + ":zeta=1"])
  with pytest.raises(UserError, match="without --config"):
    check_command_line(["--config.train.epochs=3"])


def test_shipped_configs_are_found_by_name_and_files_by_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = f"{CONFIGS / 'shapes.py'}"
  more = ["--config.train.epochs=3", "--workdir=w"]
  assert check_command_line(["--config=shapes:eta=0,lambd=0", *more]) == [
    f"--config={path}:eta=0,lambd=0",
    *more,
  ]
  assert check_command_line([*more, "--config", "shapes"]) == [*more, "--config", path]
  assert check_command_line([f"--config={path}:eta=0", *more]) == [f"--config={path}:eta=0", *more]
  with pytest.raises(UserError, match="no such file; known: bccd, deeppcb, finetune, own, paper, "):
    check_command_line(["--config=shape"])
  (tmp_path / "shapes").write_text(
    "from iou_det.config import base_config as get_config"
  )  # the user's own file comes first
  assert check_command_line(["--config=shapes"]) == ["--config=shapes"]


@pytest.mark.parametrize(("short", "portrait", "size"), [(800, False, (800, 1344)), (600, True, (1024, 608))])
def test_input_size_is_padded_to_32(short, portrait, size):
  config = shapes_config()
  config.data.update(short=short, long=1333 if short == 800 else 1000)
  assert config_lib.input_size(config, portrait) == size
