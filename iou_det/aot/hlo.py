"""Reads the text of a compiled program: XLA's optimized HLO, in the order that it is scheduled in."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

# The first number in a type's name is its bits (bf16, f8e4m3fn); pred has none, and a byte.
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)(?:e\d\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
TILE = re.compile(r"T\(([\d,*]+)\)")
SPACE = re.compile(r"S\((\d+)\)")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
ROW = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Array(NamedTuple):
  """One array of an instruction's result."""

  dtype: str
  sides: tuple[int, ...]
  logical: int  # bytes of its values
  physical: int  # bytes that it takes: sides that a tile covers are rounded up to the tile's
  space: int  # of memory; 0 is the device's main one

  @property
  def elements(self) -> int:
    return math.prod(self.sides)


@dataclass(frozen=True, slots=True)
class Instruction:
  name: str
  op: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  attributes: str  # what follows the operands, as text
  op_name: str  # the path of JAX's names; for parameters the argument's
  frame: int  # in `Program.frames`
  root: bool
  index: int | None  # of a parameter

  @property
  def elements(self) -> int:
    return sum(a.elements for a in self.arrays)

  def called(self, *names: str) -> str | None:
    """The computation that one of these attributes names."""
    found = re.search(rf"\b(?:{'|'.join(names)})=%?([\w.\-]+)", self.attributes)
    return found[1] if found else None


Computation = dict[str, Instruction]  # by name, operands first


class Program(NamedTuple):
  computations: dict[str, Computation]
  entry: str
  frames: dict[int, tuple[str, ...]]  # stack frame -> paths of source files, from the innermost outwards


def arrays(shape: str) -> tuple[Array, ...]:
  """Of a shape's text, as `bf16[8,9]{1,0:T(8,128)(2,1)S(1)}`; a tuple's in order."""
  found = []
  for dtype, digits, text, layout in ARRAY.findall(shape):
    sides = tuple(int(n) for n in text.split(",") if n)
    bits = int(digits or 8)
    order = [int(n) for n in layout.split(":")[0].split(",") if n.strip().isdigit()]
    minor_first = [sides[k] for k in order] if len(order) == len(sides) else list(sides[::-1])
    if tile := TILE.search(layout):
      for k, side in enumerate(reversed(tile[1].split(","))):
        if side == "*":
          break
        if k == len(minor_first):
          minor_first.append(1)
        minor_first[k] = -(-minor_first[k] // int(side)) * int(side)
    space = SPACE.search(layout)
    logical, physical = (math.prod(shape) * bits // 8 for shape in (sides, minor_first))
    found.append(Array(dtype, sides, logical, physical, int(space[1]) if space else 0))
  return tuple(found)


def read(text: str) -> Program:
  """A program's text, as `jax.stages.Compiled.as_text` gives it."""
  computations: dict[str, Computation] = {}
  current, entry = None, ""
  for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
    if current is None:
      if head := HEAD.match(line):
        current = computations[head[2]] = {}
        entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      current = None
    elif row := ROW.match(line):
      made = instruction(row[2], row[3], bool(row[1]))
      current[made.name] = made
  return Program(computations, entry, stack_frames(text))


def instruction(name: str, text: str, root: bool) -> Instruction:
  """Of what stands behind the `=`: shape, operation, operands and attributes."""
  split = closing(text) + 1 if text.startswith("(") else text.index(" ")
  shape, (op, rest) = text[:split], text[split:].lstrip().split("(", 1)
  end = closing("(" + rest) - 1
  inside, attributes = rest[:end], rest[end + 1 :]
  op_name = re.search(r'op_name="([^"]*)"', attributes)
  frame = re.search(r"stack_frame_id=(\d+)", attributes)
  return Instruction(
    name,
    op,
    arrays(shape),
    tuple(re.findall(r"%([\w.\-]+)", inside)),
    attributes,
    op_name[1] if op_name else "",
    int(frame[1]) if frame else 0,
    root,
    int(inside) if op == "parameter" else None,
  )


def closing(text: str) -> int:
  """Where the parenthesis that a text starts with is closed."""
  depth = 0
  for at, sign in enumerate(text):
    depth += (sign == "(") - (sign == ")")
    if depth == 0:
      return at
  return len(text)


def stack_frames(text: str) -> dict[int, tuple[str, ...]]:
  """The tables at a text's head: which files call which, for every frame."""
  tables: dict[str, dict[int, str]] = {name: {} for name in TABLES}
  part = None
  for line in text.splitlines():
    if line in TABLES:
      part = line
    elif part and (row := re.match(r"(\d+) (.*)$", line)):
      tables[part][int(row[1])] = row[2]
    elif part and line.strip():
      break
  number = lambda row, name: int((re.search(rf"{name}=(\d+)", row) or [0, 0])[1])
  files = {k: name.strip('"') for k, name in tables["FileNames"].items()}
  places = {k: files.get(number(row, "file_name_id"), "") for k, row in tables["FileLocations"].items()}
  frames = tables["StackFrames"]
  found = {}
  for frame in frames:
    path: list[str] = []
    at = frame
    while at in frames and len(path) < 100:
      path.append(places.get(number(frames[at], "file_location_id"), ""))
      at = number(frames[at], "parent_frame_id") - 1  # 1 is none
    found[frame] = tuple(path)
  return found
