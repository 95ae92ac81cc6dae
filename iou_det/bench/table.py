"""The lines of `iou-det bench` as Markdown. Usage: python -m iou_det.bench.table LINES.jsonl"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iou_det.errors import UserError

HEAD = ("bench", "what", "by", "batch", "network", "dtype", "images/s", "ms a call (IQR)", "program GB",
        "peak GB", "compile s", "TFLOP/s", "share of peak")  # fmt: skip


def read_lines(path: str | Path) -> list[dict[str, Any]]:
  """The measurements of a JSON-lines file; a line that is none is a UserError."""
  rows = []
  for number, line in enumerate(Path(path).read_text().splitlines(), 1):
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if not isinstance(row, dict) or not {"bench", "what", "by"} <= row.keys():
      raise UserError(f"{path}, line {number} is no line of `iou-det bench`: {line[:60]!r}")
    rows.append(row)
  return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
  """Measurements in one table, ratios in a second, the hardware and versions they were made with above."""
  measured = [row for row in rows if "ratio" not in row]
  origins: dict[str, dict[str, str]] = {}  # versions, by what else they were measured on
  for row in measured:
    where = ", ".join(f"{key} {value}" for key, value in row["hardware"].items())
    origins.setdefault(where, {}).update(row["versions"])
  lines = []
  for where, versions in origins.items():
    lines.append(f"Measured on {where}; {', '.join(f'{name} {v}' for name, v in versions.items())}.\n")
  if measured:
    lines += [_line(HEAD), "|---" * 3 + "|---:" * (len(HEAD) - 3) + "|", *map(_measured, measured)]
  ratios = [
    _line((r["bench"], r["what"], r["by"], r.get("batch"), _network(r), f"{r['ratio']:.2f}"))
    for r in rows
    if "ratio" in r
  ]
  if ratios:
    head = _line(("bench", "what", "ratio of", "batch", "network", "ratio"))
    lines += ["", head, "|---" * 3 + "|---:" * 3 + "|", *ratios]
  return "\n".join(lines) + "\n"


def _measured(row: dict[str, Any]) -> str:
  seconds = row["seconds_median"]
  share = row["share_of_peak"]
  return _line(
    (
      row["bench"], row["what"], row["by"], row["batch"], _network(row), row["dtype"],
      _scaled(row["images_per_second"], 1.0, 1),
      None if seconds is None else f"{seconds * 1e3:.2f} ({row['seconds_iqr'] * 1e3:.2f})",
      _scaled(row["program_memory_bytes"], 1e-9, 2),
      _scaled(row["device_peak_bytes"], 1e-9, 2),
      _scaled(row["compile_seconds"], 1.0, 1),
      _scaled(row["model_flops_per_second"], 1e-12, 2),
      None if share is None else f"{share:.1%}",
    )
  )  # fmt: skip


def _network(row: dict[str, Any]) -> str | None:
  """ResNet depth and input size."""
  shapes = row.get("shapes") or {}
  if "depth" not in shapes:
    return None
  height, width = shapes["network_input"]
  return f"R{shapes['depth']} {height}x{width}"


def _scaled(value: float | None, factor: float, digits: int) -> str | None:
  return None if value is None else f"{value * factor:.{digits}f}"


def _line(cells: Sequence[Any]) -> str:
  return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


if __name__ == "__main__":
  print(markdown(read_lines(sys.argv[1])), end="")
