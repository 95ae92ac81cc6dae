"""The command line as a user meets it: help, and bad input in one line with exit code 2."""

import pytest

from iou_det import cli
from tests.command import iou_det


def run(capsys, *argv):
  """Runs the CLI in this process; returns exit code, stdout, stderr."""
  with pytest.raises(SystemExit) as stop:
    cli.main(list(argv))
  out, err = capsys.readouterr()
  return stop.value.code, out, err


def test_help_lists_every_command(capsys):
  code, out, _ = run(capsys, "--help")
  assert code == 0
  assert all(command in out for command in cli.COMMANDS)


def test_no_and_unknown_command_exit_2(capsys):
  assert run(capsys)[0] == 2
  code, _, err = run(capsys, "trian")
  assert code == 2
  assert err.startswith("iou-det trian: unknown command; known: prepare, train")


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["train", "--config=configs/nothing.py", "--workdir=w"], "no such file"),
    (["train", "--config=configs/shapes.py:zeta=1", "--workdir=w"], "'zeta=1' is not known"),
    (
      ["train", "--config=configs/shapes.py", "--config.trian.epochs=1", "--workdir=w"],
      "'trian'; did you mean 'train'",
    ),
    (["train", "--config=configs/shapes.py", "--config.train.epochs=many", "--workdir=w"], "many"),
    (["train", "--workdir=w"], "--config is missing"),
    (["train", "--config=configs/shapes.py"], "workdir"),
    (["train", "--confg=configs/shapes.py"], "no flag --confg; did you mean --config?"),
    (["train", "--config=own", "--minutes=2", "--workdir=w"], "--config=NAME:minutes=..."),
    (["predict", "--workdir=w", "--score=high"], "flag --score=high: must be a number"),
    (["eval", "--workdir=w", "--batch_size=2.5"], "flag --batch_size=2.5: must be a whole number"),
    (["train", "--config=configs/shapes.py", "--workdir=w", "stray"], "stray"),
    (["train", "--config=configs/shapes.py", "--workdir=w", "--config.data.path=nowhere"], "nowhere"),
    (["train", "--config=configs/shapes.py", "--workdir=w", "--config.data.train_split=dev"], "dev"),
    (["eval", "--workdir=nowhere"], "nowhere"),
    (["predict", "--workdir=nowhere", "--out=o", "--split=val"], "nowhere"),
  ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, argv, message):
  done = iou_det(*argv)  # a process each: absl's flags are global
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  last = done.stderr.strip().splitlines()
  assert len(last) == 1, done.stderr
