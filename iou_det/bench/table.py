"""The lines of `iou-det bench` as Markdown. Usage: python -m iou_det.bench.table LINES.jsonl"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from iou_det.errors import UserError

NUMBERS: dict[str, Any] = {  # heading -> format, factor, fields
  "images/s": ("{:.1f}", 1.0, "images_per_second"),
  "ms a call (IQR)": ("{:.2f} ({:.2f})", 1e3, "seconds_median", "seconds_iqr"),
  "program GB": ("{:.2f}", 1e-9, "program_memory_bytes"),
  "peak GB": ("{:.2f}", 1e-9, "device_peak_bytes"),
  "compile s": ("{:.1f}", 1.0, "compile_seconds"),
  "TFLOP/s": ("{:.2f}", 1e-12, "model_flops_per_second"),
  "share of peak": ("{:.1%}", 1.0, "share_of_peak"),
}


def read_lines(path: str | Path) -> list[dict[str, Any]]:
  """The measurements of a JSON-lines file; a line that is none is a UserError."""
  rows = []
  for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
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
  said = lambda names: ", ".join(f"{name} {value}" for name, value in names.items())
  origins: dict[str, dict[str, str]] = {}  # hardware -> versions
  for row in measured:
    origins.setdefault(said(row["hardware"]), {}).update(row["versions"])
  lines = [f"Measured on {where}; {said(versions)}.\n" for where, versions in origins.items()]
  if measured:
    lines += _table(("bench", "what", "by", "batch", "network", "dtype", *NUMBERS), map(_shown, measured))
  ratios = [row | {"ratio of": row["by"], "ratio": f"{row['ratio']:.2f}"} for row in rows if "ratio" in row]
  if ratios:
    lines += ["", *_table(("bench", "what", "ratio of", "batch", "network", "ratio"), ratios)]
  return "\n".join(lines) + "\n"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
  """A row with its NUMBERS as text."""
  texts = {}
  for heading, (form, factor, *fields) in NUMBERS.items():
    values = [row[field] for field in fields]
    texts[heading] = None if None in values else form.format(*(factor * value for value in values))
  return row | texts


def _table(columns: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> list[str]:
  lines = [columns]
  for row in rows:
    shapes = row.get("shapes") or {}
    if "depth" in shapes:  # a network: ResNet depth and input size
      height, width = shapes["network_input"]
      row = row | {"network": f"R{shapes['depth']} {height}x{width}"}
    lines.append(tuple("" if row.get(column) is None else str(row[column]) for column in columns))
  head, *body = ("| " + " | ".join(line) + " |" for line in lines)
  return [head, "|---" * 3 + "|---:" * (len(columns) - 3) + "|", *body]


if __name__ == "__main__":
  print(markdown(read_lines(sys.argv[1])), end="")
