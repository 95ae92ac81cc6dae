"""What an independent reader expects of a split, record by record.

Each record is GOOD (it must come, as it is), MAY come (with these values; refusing is right too), ODD (must
not come, and need not be refused) or BAD (must not come, and is refused unless --skip_bad drops it).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

GOOD, MAY, ODD, BAD = "good", "may", "odd", "bad"


class Box(NamedTuple):
  status: str
  image: str = ""  # base name; "" for any, as with all below
  label: str = ""
  box: tuple[float, ...] = ()  # x, y, w, h
  crowd: bool | None = None
  area: tuple[float, ...] = ()  # each of them is right

  def is_(self, row: tuple) -> bool:
    image, label, *box, crowd, area = row
    same = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in zip(box, self.box, strict=False))
    area_same = not self.area or any(math.isclose(area, a, rel_tol=1e-6, abs_tol=1e-6) for a in self.area)
    return (
      self.image in ("", image)
      and self.label.strip() in ("", label.strip())
      and same
      and self.crowd in (None, crowd)
      and area_same
    )


class Expected(NamedTuple):
  """Of a split."""

  whole: str  # GOOD; MAY (be refused as a whole); BAD (must be); "unknown": anything goes
  images: Sequence[tuple[str, str, int, int]] = ()  # status, base name, width, height
  boxes: Sequence[Box] = ()
  identity: Any = None  # COCO: {id: base name} of images and {id: name} of categories; None: unclear

  def statuses(self) -> set[str]:
    return {self.whole, *(i[0] for i in self.images), *(b.status for b in self.boxes)}


def worst(*statuses: str) -> str:
  return max(statuses, key=[GOOD, MAY, ODD, BAD].index)
