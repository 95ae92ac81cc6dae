"""The lines of `iou-det bench` as a Markdown table: python -m iou_det.bench.table FILE.jsonl"""

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = (
  "bench", "piece", "model", "batch", "input", "dtype", "ms", "spread", "img/s", "memory GB", "peak share",
  "ratio",
)  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
  """A table of measurements, with one line above it for each hardware that they name."""
  cells = [COLUMNS, tuple("---" for _ in COLUMNS), *map(cells_of, rows)]
  lines = ["| " + " | ".join(row) + " |" for row in cells]
  named = {json.dumps(row["hardware"]) for row in rows if "hardware" in row}
  return "\n".join([*(f"Hardware: {x}" for x in sorted(named)), "", *lines]) + "\n"


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
  number = lambda value, digits=1: "" if value is None else f"{value:.{digits}f}"
  scaled = lambda name, factor: None if row.get(name) is None else row[name] * factor
  memory = row.get("device_memory_peak_bytes") or row.get("program_memory_bytes")
  ratios = {k: v for k, v in row.items() if k.startswith(("torchvision", "against_"))}
  return (
    row["bench"],
    row["piece"],
    row.get("model", ""),
    str(row.get("batch_size", "")),
    "x".join(map(str, row.get("input_size", []))),
    row.get("dtype", ""),
    number(scaled("median_s", 1e3), 2),
    number(scaled("spread_s", 1e3), 2),
    number(row.get("images_per_second")),
    number(None if memory is None else memory / 1e9, 2),
    number(row.get("peak_flops_share"), 3),
    ", ".join(f"{k.removeprefix('against_')}: {v:.2f}" for k, v in ratios.items() if v is not None),
  )


def main() -> None:
  lines = Path(sys.argv[1]).read_text().splitlines()
  print(markdown([json.loads(line) for line in lines]), end="")


if __name__ == "__main__":
  main()
