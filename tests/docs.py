"""README.md and docs/: their fenced blocks, with what a mark above a block says it needs, and their links."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Above a block, `<!-- needs: GPU, network -->`: its commands are not run here, though spelt right.
NEEDS = ("GPU", "cluster", "network", "data", "minutes", "hours")
LANGUAGES = ("bash", "python", "json", "text")  # the first two are run, the others show
BLOCK = re.compile(r"^(?:<!-- needs: (.*) -->\n)?```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
# Programs that blocks call: bash finds these in place of the real ones, and each notes how it was called.
PROGRAMS = ("bash", "gcloud", "git", "iou-det", "pip", "python", "python3", "sbatch", "sky")
NOTE = """#!/bin/sh
{ printf '%s\\037' "${0##*/}" "$@"; printf '\\036'; } >> "$CALLS"
"""


class Block(NamedTuple):
  where: str  # docs/data.md:12
  language: str
  needs: frozenset[str]
  text: str


def read_blocks(page: Path) -> list[Block]:
  text, found = page.read_text(), []
  for match in BLOCK.finditer(text):
    needs, language, body = match.groups()
    line = text[: match.start(3)].count("\n") + 1
    words = frozenset(needs.split(", ") if needs else ())
    found.append(Block(f"{page.relative_to(ROOT)}:{line}", language, words, body))
  return found


def blocks(language: str) -> list[Block]:
  return [b for page in PAGES for b in read_blocks(page) if b.language == language]


def called(text: str, folder: Path) -> list[list[str]]:
  """Each program with its arguments, as bash calls them in a folder; none of them is run."""
  programs, calls = folder / "programs", folder / "calls"
  if not programs.exists():
    programs.mkdir()
    for name in PROGRAMS:
      (programs / name).write_text(NOTE)
      (programs / name).chmod(0o755)
  calls.write_text("")
  done = subprocess.run(
    ["/bin/bash", "-euo", "pipefail", "-c", text],
    cwd=folder, env={"PATH": str(programs), "CALLS": str(calls)}, capture_output=True, text=True)  # fmt: skip
  assert done.returncode == 0, f"bash: {done.stderr}"
  return [call.split("\037")[:-1] for call in calls.read_text().split("\036")[:-1]]


def anchors(page: Path) -> set[str]:
  """As GitHub makes them of headings; of two alike only the first is a good place to link to."""
  plain = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
  headings = re.findall(r"^#+ (.*)$", plain, flags=re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(page: Path) -> list[str]:
  """Targets of links and pictures that are no addresses."""
  plain = re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", page.read_text(), flags=re.DOTALL)
  found = re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", plain)
  return [target for target in found if "://" not in target]


def inline(page: Path) -> list[str]:
  """Code within sentences."""
  return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


def only_spelling(command: str) -> None:
  """Has a command of this process do nothing but read its flags, its config and its words."""
  import importlib

  from iou_det.config_args import config_from_flag

  module = importlib.import_module(f"iou_det.commands.{command.replace('-', '_')}")

  def check(words: tuple[str, ...] = ()) -> None:
    known = getattr(module, "KINDS", None) or getattr(module, "EXPERIMENTS", None)
    assert not known or (len(words) == 1 and words[0] in known), f"{words}: known are {', '.join(known)}"
    config = getattr(module, "CONFIG", None)
    if config is not None and config.value is not None:
      config.value.data.path = config.value.data.path or "of the data flag"
      config_from_flag(config)

  module.main = check
