"""README.md and docs/: blocks are run at toy size, or at least spelt right; links lead somewhere."""

import functools
import re
import shlex
import shutil
import subprocess
import tomllib
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from iou_det.cli import COMMANDS
from iou_det.config import SETTINGS
from iou_det.weights.load import load_detector
from tests import docs
from tests.command import COMPILE_QUICKLY, iou_det
from tests.docs import PAGES, ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
TOY = {"train": ["--check_only"], "reproduce": ["--dry_run"], "fit-wloc": ["--images=1"]}
SPECIAL = (
  "InferenceSlicer",
  "shapes.stablehlo",
  "shapes.onnx",
  "def loss_fn",
)  # programs with tests of their own


def trained() -> set[str]:
  """Workdirs that the pages' commands, or demo.sh, train or import."""
  texts = [b.text for b in docs.blocks("bash")]
  found = {"runs/demo"}
  for line in re.sub(r" *\\\n *", " ", "".join(texts)).splitlines():
    if re.match(r"iou-det (train|import-weights) ", line):
      found |= set(re.findall(r"--(?:workdir|out)=(\S+)", line))
  return found


@pytest.fixture(scope="module")
def world(tmp_path_factory, reference, shapes_folder) -> Path:
  """A folder in which all that the pages name is there: data are shapes, what is trained is the tiny run."""
  here = tmp_path_factory.mktemp("world")
  data = shutil.copytree(shapes_folder, here / "data")  # that others use stays as it is
  for folder in (
    ".venv/bin",
    "iou-det",
    "new",
    "coco/annotations",
    "undivided",
    "a_folder",
    "more",
    "folder",
    "datasets",
  ):
    (here / folder).mkdir(parents=True, exist_ok=True)
  (here / ".venv/bin/activate").touch()
  for folder in ("launch", "configs", "tests"):
    (here / folder).symlink_to(ROOT / folder)
  for name in ("my_data", "FOLDER", "BCCD", "datasets/mine", "datasets/bccd"):
    (here / name).symlink_to(data)
  for split in ("train", "val"):  # COCO's own names
    (here / f"coco/{split}2017").symlink_to(data / split)
    annotations = data / f"annotations/instances_{split}.json"
    (here / f"coco/annotations/instances_{split}2017.json").symlink_to(annotations)
  (here / "COCO_FOLDER").symlink_to("coco")
  (here / "UNDIVIDED").symlink_to("undivided")
  (here / "undivided/images").symlink_to(data / "train")
  (here / "undivided/result.json").symlink_to(data / "annotations/instances_train.json")
  for workdir in trained() | {"runs/a", "runs/b", "DETECTOR"}:
    if "://" not in workdir:
      shutil.copytree(reference[0], here / workdir)
  photos = [cv2.imread(str(p)) for p in sorted((data / "val").iterdir())]
  names = (
    "photo.jpg",
    "photo1.jpg",
    "photo2.png",
    "a_folder/c.jpg",
    "more/d.png",
    "folder/e.jpg",
  )
  for file, photo in zip(names, photos, strict=False):
    cv2.imwrite(str(here / file), photo)
  cv2.imwrite(str(here / "large.jpg"), np.vstack([np.hstack(photos[:2]), np.hstack(photos[2:4])]))
  height, width, _ = photos[0].shape
  clip = cv2.VideoWriter(str(here / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (width, height))
  for photo in photos[:3]:
    clip.write(photo)
  clip.release()
  return here


@pytest.fixture
def here(world, monkeypatch) -> Path:
  monkeypatch.chdir(world)
  return world


def with_marks(blocks):
  """Blocks as parameters; ONNX is an extra."""
  return [pytest.param(b, marks=[pytest.mark.onnx] * ("onnx" in b.text), id=b.where) for b in blocks]


@pytest.mark.parametrize("block", with_marks(docs.blocks("bash")))
def test_commands(block, here):
  """Those of a block without a mark run; of one with a mark flags, configs, extras and files are right.

  What installs is never run.
  """
  for call in docs.called(block.text, here):
    check(tuple(call), bool(block.needs), here)


def test_demo(here):
  """What launch/demo.sh runs when all is installed."""
  _, commands = (
    (ROOT / "launch/demo.sh").read_text().split('source launch/install.sh "[fast-eval]"\n')
  )  # the page's errors need it
  calls = docs.called(f"workdir=runs/demo SECONDS=0\n{commands}", here)
  assert [call[:2] for call in calls] == [["iou-det", c] for c in ("train", "predict", "report")]
  for call in calls:
    check(tuple(call), False, here)


@functools.cache  # what several pages say is run once
def check(call: tuple[str, ...], marked: bool, here: Path) -> None:
  program, *arguments = call
  said = shlex.join(call)
  if program == "iou-det":
    run_or_spell(arguments, marked)
  elif program == "bash":
    script = ROOT / arguments[0]
    assert script.is_file() and arguments[0].startswith("launch/"), said
    if not marked:
      assert "--dry_run" in arguments, f"{said}: only a dry run can be run here; or say what the block needs"
      done = subprocess.run(["bash", script, *arguments[1:]], cwd=ROOT, capture_output=True, text=True)
      assert done.returncode == 0 and "iou-det train" in done.stdout, done.stderr
    check_train_flags(arguments)
  elif program == "python":
    assert marked, f"{said}: say what the block needs"
    module = arguments[1].replace(".", "/") if arguments[0] == "-m" else arguments[0].removesuffix(".py")
    (script,) = [p for p in (ROOT / f"{module}.py", ROOT / f"{module}/__main__.py") if p.is_file()]
    flags = [a.split("=")[0] for a in arguments if a.startswith("--")]
    unknown = [flag for flag in flags if f'"{flag}"' not in script.read_text()]
    assert not unknown, f"{said}: {script} knows no {unknown}"
  elif program == "python3":
    assert arguments == ["-m", "venv", ".venv"], said
  elif program == "pip":
    check_pip(arguments)
  else:
    assert marked, f"{said}: say what the block needs"
    assert all((ROOT / a).is_file() for a in arguments if a.startswith("launch/")), said
    check_train_flags([f for a in arguments for f in shlex.split(a.removeprefix("FLAGS="))])


def check_train_flags(arguments: list[str]) -> None:
  """Of a launcher: what it gives to `iou-det train`."""
  flags = [a for a in arguments if a.startswith(("--config", "--workdir"))]
  if flags:
    run_or_spell(["train", *flags], marked=True)


def check_pip(arguments: list[str]) -> None:
  assert arguments.pop(0) == "install"
  while arguments:
    argument = arguments.pop(0)
    if argument == "-c":
      assert (ROOT / arguments.pop(0)).is_file()
    elif argument not in ("-e", "--no-deps"):
      where, _, extras = argument.partition("[")
      if where == ".":
        assert {e for e in extras.removesuffix("]").split(",") if e} <= EXTRAS, argument
      else:
        Requirement(argument)


@functools.cache
def run_once(arguments: tuple[str, ...], before: str) -> str:
  """What the command prints."""
  done = iou_det(*arguments, before=before, XLA_FLAGS=COMPILE_QUICKLY)  # on one device
  assert done.returncode == 0, f"iou-det {shlex.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
  return done.stdout


def run_or_spell(arguments: list[str], marked: bool) -> str:
  command = arguments[0]
  assert command in COMMANDS, command
  before = f"from tests.docs import only_spelling; only_spelling({command!r})" if marked else ""
  if not marked:
    folder = f"new/{zlib.crc32(' '.join(arguments).encode())}"  # where nothing is yet
    new = {"train": "--workdir=", "prepare": "--data_dir="}.get(command, "none")
    arguments = [f"{new}{folder}" if a.startswith(new) else a for a in arguments]
    arguments = [*arguments, *TOY.get(command, [])]
  return run_once(tuple(arguments), before)


plain = [b for b in docs.blocks("python") if not any(part in b.text for part in SPECIAL)]


@pytest.mark.parametrize("block", with_marks(plain))
def test_programs(block, here, capsys):
  if "print(name, score, box)" not in block.text:
    exec(block.text, {})
    return
  found = load_detector("runs/demo")("photo.jpg")
  # A hardly trained detector is sure of nothing.
  cut = float(np.median(found.scores)) if "score >= 0.5" in block.text else 0.0
  exec(block.text.replace("score >= 0.5", f"score >= {cut}"), {})
  printed = capsys.readouterr().out.splitlines()
  high = [name for name, score in zip(found.names, found.scores, strict=True) if score >= cut]
  assert [line.split()[0] for line in printed] == high and high


def program(part: str) -> str:
  """The one program with something in it; that with loss_fn is run by test_library.py."""
  (found,) = [b.text for b in docs.blocks("python") if part in b.text]
  return found


def test_supervision_slices_a_large_image(here):
  """Tiles without overlap are the pictures: what is found in each, moved to its place."""
  sizes = "slice_wh=(160, 128), overlap_wh=(32, 32)", "slice_wh=(96, 64), overlap_wh=(0, 0)"
  names: dict = {}
  exec(program("InferenceSlicer").replace(*sizes), names)
  found, detector = names["found"], names["detector"]
  quarters = cv2.imread("large.jpg")[..., ::-1]
  expected = []
  for y in (0, 64):
    for x in (0, 96):
      boxes, scores, _ = detector(np.ascontiguousarray(quarters[y : y + 64, x : x + 96])).to_arrays()
      expected += [(s, *(b + [x, y, x, y])) for s, b in zip(scores, boxes, strict=True)]
  ours = sorted((s, *b) for s, b in zip(found.confidence, found.xyxy, strict=True))
  # Its own NMS drops what overlaps by more than half; ours has done so within a tile.
  np.testing.assert_allclose(ours, sorted(expected), atol=1e-3)
  assert len(ours) > 4


@pytest.mark.parametrize("kind", ["stablehlo", pytest.param("onnx", marks=pytest.mark.onnx)])
def test_exported_programs_run_as_it_says(here, kind):
  """What the command writes, run by the page's lines, finds what the detector finds."""
  command = ["export", "--workdir=runs/demo", f"--format={kind}", f"--out=shapes.{kind}"]
  assert "4 classes, step 8" in run_or_spell(command, marked=False)
  picture = np.ascontiguousarray(cv2.imread("photo.jpg")[..., ::-1])
  found: dict = {"images": picture[None]}
  exec(program(f"shapes.{kind}"), found)
  expected = load_detector("runs/demo")(picture)
  number = int(np.asarray(found["valid"]).sum())
  assert [found["names"][k] for k in np.asarray(found["labels"])[0, :number]] == expected.names
  np.testing.assert_allclose(np.asarray(found["boxes"])[0, :number], expected.boxes, atol=0.05)


def test_blocks_are_run_or_say_why_not():
  for page in PAGES:
    text, found = page.read_text(), docs.read_blocks(page)
    assert text.count("```") == 2 * len(found), f"{page}: a block that is not seen as one"
    marks = re.findall("^<!-- needs", text, re.MULTILINE)
    assert len(marks) == sum(bool(b.needs) for b in found), f"{page}: a mark above no block"
    for block in found:
      assert block.language in docs.LANGUAGES, f"{block.where}: none of {docs.LANGUAGES}"
      assert block.needs <= set(docs.NEEDS), f"{block.where}: none of {docs.NEEDS}"
      shown = block.language in ("json", "text")
      command = re.search(rf"^\$? *({'|'.join(docs.PROGRAMS)}) ", block.text, re.MULTILINE)
      assert not (shown and (command or block.needs)), f"{block.where}: a command in a block that is not run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in docs.links(page):
    file, _, anchor = target.partition("#")
    path = (page.parent / file) if file else page
    assert path.exists(), f"{page.name}: {target}"
    assert not anchor or anchor in docs.anchors(path), f"{page.name}: {target}; {sorted(docs.anchors(path))}"


def test_pages_and_pictures_are_all_shown():
  shown = {page: {(page.parent / t.partition("#")[0]).resolve() for t in docs.links(page)} for page in PAGES}
  assert set(PAGES[1:]) <= shown[PAGES[0]], "a page that README.md does not link"
  assert set((ROOT / "docs").iterdir()) <= set.union(*shown.values()), "a picture that no page shows"


def test_settings_and_flags_in_sentences_exist():
  """`train.ema=0.999`, `--config.data.short`, `--skip_bad`, `iou-det eval --backend`."""
  files = [
    *(ROOT / "iou_det/commands").glob("*.py"),
    *(p for p in (ROOT / "launch").iterdir() if p.is_file()),
  ]
  text = "".join(p.read_text() for p in files)
  others = {"--nodes", "--no-deps", "--help", "--strict", "--logdir"}
  for page in PAGES:
    for code in docs.inline(page):
      assert not (m := re.match(r"iou-det ([a-z][\w-]*)", code)) or m[1] in COMMANDS, f"{page.name}: {code}"
      for field in re.findall(r"(?<![\w./-])(?:--config\.)?(\w+\.\w+)(?=[=`)]|$)", code):
        section, setting = field.split(".")
        if section in SETTINGS and setting not in ("csv", "json", "txt", "yaml"):
          assert setting in SETTINGS[section], f"{page.name}: {code}: no setting {field}"
      for flag in re.findall(r"(?<!\S)--[a-zA-Z_-]+(?!\w*\.)", code):
        word = flag.removeprefix("--")
        assert f'"{word}"' in text or flag in text or flag in others, f"{page.name}: {code}: no flag {flag}"


def test_figures_of_the_configs_stand_beside_them():
  """The table in docs/results.md and the heads of the configs say the same."""
  rows = (ROOT / "docs/results.md").read_text().splitlines()
  for config in ("shapes", "bccd", "deeppcb"):
    head = (ROOT / f"configs/{config}.py").read_text().split('"""')[1]
    figures = re.search(r"AP (0\.\d+), AP50 (0\.\d+), AP75 (0\.\d+)", head).groups()
    (row,) = [r for r in rows if r.startswith(f"| [`configs/{config}.py`]")]
    assert [cell.strip() for cell in row.split("|")[4:7]] == list(figures)


def test_versions_agree():
  version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
  released = re.findall(r"^## \[(\d.*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert released[0] == (version, citation["date-released"]) and citation["version"] == version


def test_every_extra_is_named():
  table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
  assert set(EXTRAS) <= {name for row in table for name in re.findall(r"`([\w-]+)`", row)}
