"""Pieces of HTML: tables, paragraphs, legends. Names out of data are escaped here."""

import html
from collections.abc import Sequence
from typing import TypeAlias

from iou_det.streams import one_line

Cell: TypeAlias = str | float | int | None


class Safe(str):
  """HTML that stands as it is."""


def text(cell: Cell, spec: str = ".3f") -> str:
  """A cell as HTML; None, a number that there is none of, is a dash."""
  if isinstance(cell, Safe):
    return cell
  if cell is None:
    return "-"
  if isinstance(cell, int):
    return f"{cell:,}"
  return html.escape(format(cell, spec) if isinstance(cell, float) else one_line(cell))


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], spec: str = ".3f") -> str:
  """Numbers to copy: the first cell of a row is its heading; floats are written by `spec`."""
  head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
  body = []
  for name, *cells in rows:
    written = "".join(f"<td>{text(cell, spec)}</td>" for cell in cells)
    body.append(f'<tr><th scope="row">{text(name)}</th>{written}</tr>')
  inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
  about = f"<figcaption>{text(caption)}</figcaption>"  # no <caption>: it would be as narrow as the table
  return f'<figure>{about}<div class="wide"><table>{inside}</table></div></figure>'


def paragraph(sentence: str) -> str:
  return f"<p>{text(sentence)}</p>"


def folded(summary: str, inside: str) -> str:
  """What is shown on demand."""
  return f"<details><summary>{text(summary)}</summary>{inside}</details>"
