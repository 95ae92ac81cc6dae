"""Which part of the network or of the step an instruction belongs to."""

import functools
from collections import defaultdict
from typing import NamedTuple

from iou_det.aot.hlo import Instruction, Program

# In the paths of names that Flax gives.
MODULES = {
  "/classification_head": "class head",
  "/regression_head": "box head",
  "/fpn": "FPN",
  "/backbone": "backbone",
}
# By the source files that instructions come from, from the innermost call outwards: the first that is here.
FILES = {
  "iou_det/data/preprocess.py": "preprocessing",
  "iou_det/data/colour.py": "preprocessing",
  "iou_det/ops/matching.py": "matching",
  "iou_det/ops/losses.py": "loss",
  "iou_det/ops/other_losses.py": "loss",
  "iou_det/training/losses.py": "loss",
  "iou_det/ops/nms.py": "detection",
  "iou_det/ops/detection.py": "detection",
}
NETWORK = (*MODULES.values(),)
OPTIMIZER, EXCHANGE, OTHER = "optimizer", "exchange", "other"
FAR = 12  # instructions that are looked through for one that says what it is of


class Part(NamedTuple):
  name: str
  backward: bool = False

  def __str__(self) -> str:
    both = self.name in (*NETWORK, "loss")
    return f"{self.name} {'backward' if self.backward else 'forward'}" if both else self.name


class Parts:
  """Of the kernels of a program."""

  def __init__(self, program: Program) -> None:
    self.program = program
    self.users = functools.cache(self._users)

  def of(self, i: Instruction, computation: str) -> Part:
    """A kernel that says nothing (copies, layouts) is of the part that uses or, else, makes what it moves."""
    return self.said(i) or self.near(i, computation, True) or self.near(i, computation, False) or Part(OTHER)

  def said(self, i: Instruction) -> Part | None:
    """By an instruction's own name and place, or those of what is fused in it, the last first."""
    named, body = [i], i.called("calls")
    if not i.op_name.startswith("jit(") and body in self.program.computations:
      named += reversed(self.program.computations[body].values())
    for j in named:
      if not j.op_name.startswith("jit("):  # an argument's name, or none
        continue
      if "/psum" in j.op_name:  # of gradients: they are joined, sent and cut apart again
        return Part(EXCHANGE)
      backward = "transpose(" in j.op_name
      for module, name in MODULES.items():
        if module in j.op_name:
          return Part(name, backward)
      files = self.program.frames.get(j.frame, ())
      for file in files:
        for end, name in FILES.items():
          if file.endswith(end):
            return Part(name, backward and name == "loss")
      return Part(OPTIMIZER if any("/optax/" in file for file in files) else OTHER)
    return None

  def near(self, i: Instruction, computation: str, forward: bool) -> Part | None:
    """By the nearest instruction that uses what this one yields, or that made what it takes."""
    rows = self.program.computations[computation]
    seen, front = {i.name}, [i]
    for _ in range(FAR):
      names = [n for j in front for n in (self.users(computation)[j.name] if forward else j.operands)]
      front = [rows[n] for n in dict.fromkeys(names) if n in rows and n not in seen]
      seen |= {j.name for j in front}
      for j in front:
        if j.op != "tuple" and (part := self.said(j)):
          return part
    return None

  def _users(self, computation: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for i in self.program.computations[computation].values():
      for operand in i.operands:
        found[operand].append(i.name)
    return found
