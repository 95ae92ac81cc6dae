"""What is odd in the records of a data set, and what to do about it: for `prepare` and `doctor`."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from iou_det.data.labels import Labels, Remark
from iou_det.data.source import Category, Source, describe_difference
from iou_det.finding import Finding, some

Contents = UInt64[np.ndarray, " images"]  # the same for images of the same content; 0: not known
Column = Float64[np.ndarray, " boxes"]

FEWEST = 10  # boxes; fewer may be so by chance
# Share of boxes that reach out. Corners taken for x, y, w, h do where x1 + x2 exceeds the width or y1 + y2
# the height: three quarters of boxes all over the image. Objects may keep to the upper left.
WRONG_AS_CORNERS = 0.3
WRONG_AS_CENTRES = 0.1  # those at the right and lower edge alone
RIGHT = 0.99  # of the boxes must be right in the other reading; the rest may be wrong in both
SLACK = 1.0  # pixels: inclusive ends and rounding
NO_AREA = 0.05  # of its box; the median mask of COCO covers 0.6
UNBALANCED = 100  # times as many boxes as the rarest class: some epochs then have it only by chance

CORNERS = "boxes that seem to be x1 y1 x2 y2 given as x y w h"
CENTRES = "boxes that seem to be x_centre y_centre w h given as x y w h"
FRACTIONS = "boxes that seem to be fractions of their image given as pixels"
SMALL_AREAS = "boxes whose 'area' is next to nothing, in all images alike"

EXIF_FLAGS = "--exif=ignore (in place: --config.data.exif=ignore)"
# Level and remedy of what is remarked of single records, by the words of the remark.
ADVICE = {
  CORNERS: ("error", "mend the annotations: COCO's bbox is x1, y1, x2 - x1, y2 - y1"),
  CENTRES: ("error", "mend the annotations: COCO's bbox is x_centre - w / 2, y_centre - h / 2, w, h"),
  FRACTIONS: ("error", "mend the annotations: multiply x and w by the image's width, y and h by its height"),
  SMALL_AREAS: ("warning", "leave 'area' out (the box's is taken then): it decides what APs, APm, APl count"),
  "images without boxes": ("note", "training leaves them out; --config.data.keep_empty=True takes them"),
  "file names given twice": ("warning", "give each file one record: the objects of the other are background"),
  "zero-area boxes": (
    "warning",
    "take them out, by the line or file that says them: training leaves them out, but scoring counts them as "
    "objects that nothing can find",
  ),
  "boxes that reach out of their image": (
    "warning",
    "training cuts them at the edge, scoring does not; see that they belong to these images, and cut them",
  ),
  "boxes whose 'area' is larger than they are": (
    "warning",
    "leave 'area' out (the box's is taken then): it decides what APs, APm, APl count",
  ),
  "boxes given twice": ("warning", "take one of each out: scoring counts the second one as missed"),
  "annotation ids given twice": ("note", "nothing: they are numbered anew for scoring"),
  "images with the same content as another": (
    "warning",
    "take one out, or join their boxes: where they differ, each is wrong for the other",
  ),
  "images with decoder warnings": ("warning", "look at them and store them anew: parts may be missing"),
  "images turned by EXIF whose size does not tell": (
    "warning",
    f"look at some; if their boxes refer to the pixels as stored, give {EXIF_FLAGS}",
  ),
}


def remark_oddities(labels: Labels) -> None:
  """Adds in what other form the boxes may be given, and areas that are none."""
  a = labels.annotations
  image = a.image_of_box()
  width, height = a.width[image], a.height[image]
  x, y, w, h = a.bbox.T
  solid = (w > 0) & (h > 0)

  def right(x1: Column, y1: Column, x2: Column, y2: Column) -> float:
    """Share of the boxes that have an area and lie in their image, read so."""
    inside = (x1 >= -SLACK) & (y1 >= -SLACK) & (x2 <= width + SLACK) & (y2 <= height + SLACK)
    return share(inside & (x2 > x1) & (y2 > y1))

  wrong = 1 - right(x, y, x + w, y + h)
  forms = {
    CORNERS: wrong >= WRONG_AS_CORNERS and right(x, y, w, h) >= RIGHT,
    CENTRES: wrong >= WRONG_AS_CENTRES and right(x - w / 2, y - h / 2, x + w / 2, y + h / 2) >= RIGHT,
    FRACTIONS: share((a.bbox <= 1).all(axis=1) & solid & (np.minimum(width, height) > 1)) >= RIGHT,
    SMALL_AREAS: solid.any() and np.median(a.area[solid] / (w * h)[solid]) < NO_AREA,
  }
  enough = len(a.bbox) >= FEWEST
  for trait, holds in forms.items():
    labels.remark(trait, len(a.bbox) if holds and enough else 0)
    enough = enough and not holds  # what is one is not another


def share(which: Bool[np.ndarray, " n"]) -> float:
  return float(which.mean()) if len(which) else 0.0


def of_remarks(splits: Mapping[str, Labels]) -> list[Finding]:
  """What was remarked of single records, of all splits together; what needs no remedy in one note."""
  remarks: dict[str, dict[str, Remark]] = {}
  for split, labels in splits.items():
    for trait, remark in labels.remarks.items():
      if remark.number:
        remarks.setdefault(trait, {})[split] = remark
  findings, others = [], []
  for trait, found in remarks.items():
    what = f"{trait}: " + ", ".join(f"{split} {remark.number}" for split, remark in found.items())
    if trait in ADVICE:
      examples = [e for remark in found.values() for e in remark.examples][:3]
      level, todo = ADVICE[trait]
      findings.append(Finding(level, what + (f" ({', '.join(examples)})" if examples else ""), todo))
    else:
      others.append(what)
  return [*findings, *([Finding("note", "; ".join(others))] if others else [])]


def across(splits: Mapping[str, Labels], contents: Mapping[str, Contents]) -> list[Finding]:
  """What is odd of splits beside each other, and of classes."""
  first, *others = splits
  findings = []
  for other in others:
    tables: dict[str, Sequence[Category]] = {split: splits[split].categories for split in (first, other)}
    if tables[first] != tables[other]:
      what = f"{first} and {other} have different category tables ({describe_difference(tables)})"
      todo = "give all splits the same ids and names: one label means one class"
      findings.append(Finding("error", what, todo))
  findings += shared_images(splits, contents)
  return findings + (classes(splits) if not any(f.level == "error" for f in findings) else [])


def shared_images(splits: Mapping[str, Labels], contents: Mapping[str, Contents]) -> list[Finding]:
  """Images that two splits have, by content."""
  findings = []
  for one, other in combinations([split for split in splits if split in contents], 2):
    both, at, _ = np.intersect1d(contents[one], contents[other], return_indices=True)
    at = at[both > 0]
    if len(at):
      names = some(splits[one].annotations.file_name[i] for i in at)
      todo = (
        f"take them out of one: scores on what was trained on are too good (their names in {one} are given)"
      )
      what = f"{len(at)} images of {one} are in {other} too, by content ({names})"
      findings.append(Finding("warning", what, todo))
  return findings


def classes(splits: Mapping[str, Labels | Source]) -> list[Finding]:
  """Classes without boxes, in some splits only or much rarer than others; all splits have one table."""
  names = [c.name for c in next(iter(splits.values())).categories]
  boxes = {s: np.bincount(p.annotations.label, minlength=len(names)) for s, p in splits.items()}
  every = sum(boxes.values(), np.zeros(len(names), np.int64))

  def said(which: np.ndarray) -> str:
    return f"{which.sum()} of {len(names)} classes ({some(names[k] for k in np.flatnonzero(which))})"

  findings = []
  if (every == 0).any():
    todo = "nothing, if they are to come; a detector never finds them"
    findings.append(Finding("note", f"{said(every == 0)} have no box", todo))
  lacking = {split: (own == 0) & (every > 0) for split, own in boxes.items()}
  if some_lack := [f"{split} has no box of {said(w)}" for split, w in lacking.items() if w.any()]:
    todo = "deal the images out anew: what training lacks is never found, what scoring lacks is not scored"
    findings.append(Finding("warning", "; ".join(some_lack), todo))
  there = every[every > 0]
  if len(there) and there.max() > UNBALANCED * there.min():
    most, least = names[int(every.argmax())], names[int(np.flatnonzero(every == there.min())[0])]
    what = f"classes are unbalanced: {most} has {there.max()} boxes, {least} {there.min()}"
    todo = "--config.data.repeat_threshold=0.01 shows images with rare classes more often"
    findings.append(Finding("note", what, todo))
  return findings
