"""Draws detections on images. Text by Pillow, which matplotlib needs anyway: OpenCV's letters are poor."""

import colorsys
import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from absl import logging
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from iou_det import fonts
from iou_det.data.source import Category
from iou_det.streams import one_line

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive

MIN_SIDE = 640  # smaller images are enlarged to about this before text goes on them
GAP = 8  # pixels between the pictures of a contact sheet
# Of the first classes: after Okabe and Ito's, which differ for every kind of colour vision, but brighter.
COLOURS = (
  (240, 100, 20), (110, 195, 250), (15, 175, 125), (250, 240, 80), (215, 130, 190), (30, 110, 230),
  (255, 185, 60),
)  # fmt: skip


def drawable_names(categories: Sequence[Category], font: str | None = None) -> list[str]:
  """Names as they can be drawn: "id 3" where no font here has all letters, which is said once."""
  names = [one_line(c.name) for c in categories]
  lacking = {
    c: letters for c, n in zip(categories, names, strict=True) if (letters := fonts.lacking(n, font))
  }
  if lacking:
    letters = "".join(dict.fromkeys("".join(lacking.values())))
    which = ", ".join(f"{one_line(c.name)} (id {c.id})" for c in list(lacking)[:5])
    more = ", ..." if len(lacking) > 5 else ""
    logging.warning(
      f"no font of this machine has {letters[:20]}{'...' if len(letters) > 20 else ''}: {len(lacking)} of "
      f"{len(names)} classes are drawn by their id, {which}{more}; give a font that has the letters "
      "(--font=FILE) or install one, as Noto Sans of that script"
    )
  return [f"id {c.id}" if c in lacking else name for c, name in zip(categories, names, strict=True)]


def draw_detections(
  image: UInt8[np.ndarray, "h w 3"],
  boxes: Float[np.ndarray, "n 4"],
  labels: Int[np.ndarray, " n"],
  scores: Float[np.ndarray, " n"],
  names: Sequence[str],
  *,
  ground_truth: Float[np.ndarray, "m 4"] | None = None,
  font: str | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
  """A new RGB picture with boxes, class and score, the best on top; ground truth below, dashed in white.

  An image whose longer side is below 640 px is enlarged by the next whole factor. Boxes are x1, y1, x2, y2 in
  pixels of `image`, x2 and y2 exclusive. Labels are indices into `names`; each has its own colour everywhere.
  A letter is drawn with the file `font`, DejaVu Sans or another font of this machine: the first that has it.
  """
  factor = max(1, math.ceil(MIN_SIDE / max(image.shape[:2])))
  height, width = factor * image.shape[0], factor * image.shape[1]
  line = max(2, round(max(height, width) / 240))
  letters = max(13, round(max(height, width) / 40))
  picture = Image.fromarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))
  draw = ImageDraw.Draw(picture)

  for box in () if ground_truth is None else ground_truth:
    _dashed(draw, _pixels(box, factor, height, width), line)
  taken: list[Rectangle] = []
  order = np.argsort(-scores, kind="stable")
  for i in order[::-1]:
    x1, y1, x2, y2 = _pixels(boxes[i], factor, height, width)
    dark = line + max(1, line // 2)  # inside the line, which would be lost on a background of its colour
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(30, 30, 30), width=dark)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=_colour(int(labels[i])), width=line)
  for i in order:  # the best detection's label gets the best place
    text, colour = _Text(str(names[labels[i]]), f" {scores[i]:.2f}", letters, font), _colour(int(labels[i]))
    size = text.width + 3 * line, text.ascent + text.descent
    x1, y1, x2, y2 = place = _place(_pixels(boxes[i], factor, height, width), size, taken, (height, width))
    taken.append(place)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    ink = "black" if _luminance(colour) > 0.18 else "white"  # what has more contrast
    text.draw(draw, (x1 + x2 - text.width) / 2, y1 + text.ascent, ink)
  return np.array(picture)


class _Text:
  """A name and what stands behind it, in pieces of one font each; as high as any text in these fonts."""

  def __init__(self, name: str, behind: str, size: int, font: str | None) -> None:
    pieces = [*fonts.runs(name, font), *fonts.runs(behind, font)]
    shown = str if fonts.shapes_letters() else functools.partial(fonts.UNSEEN.sub, "")
    self.pieces = [(shown(text), fonts.load(face or fonts.DEJAVU, size)) for text, face in pieces]
    self.width = math.ceil(sum(used.getlength(text) for text, used in self.pieces))
    self.ascent, self.descent = (max(m) for m in zip(*(f.getmetrics() for _, f in self.pieces), strict=True))

  def draw(self, draw: ImageDraw.ImageDraw, x: float, baseline: int, ink: str) -> None:
    for text, used in self.pieces:
      draw.text((x, baseline), text, fill=ink, font=used, anchor="ls")
      x += used.getlength(text)


def contact_sheet(
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, columns: int = 3, cell: int = 480
) -> UInt8[np.ndarray, "H W 3"]:
  """Puts RGB pictures of any sizes on a white grid, `columns` a row, or as many as there are.

  Larger ones are shrunk to fit a square of `cell` pixels; a row is no taller than it must be.
  """
  if not images:
    raise ValueError("a contact sheet needs at least one image")
  columns = min(columns, len(images))
  fitted = [Image.fromarray(image) for image in images]
  for image in fitted:
    image.thumbnail((cell, cell))
  rows = [fitted[first : first + columns] for first in range(0, len(fitted), columns)]
  heights = [max(image.height for image in row) for row in rows]
  size = (columns * (cell + GAP) + GAP, sum(heights) + GAP * len(rows) + GAP)
  sheet, top = Image.new("RGB", size, "white"), GAP
  for row, tall in zip(rows, heights, strict=True):
    for k, image in enumerate(row):
      x = GAP + k * (cell + GAP) + (cell - image.width) // 2
      sheet.paste(image, (x, top + (tall - image.height) // 2))
    top += tall + GAP
  return np.array(sheet)


def _pixels(box: Float[np.ndarray, " 4"], factor: int, height: int, width: int) -> Rectangle:
  """In the enlarged picture: inside it and at least one pixel wide and high."""
  x1, y1, x2, y2 = (round(float(v) * factor) for v in box)
  x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
  return x1, y1, min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)


def _place(
  box: Rectangle, size: tuple[int, int], taken: list[Rectangle], limits: tuple[int, int]
) -> Rectangle:
  """Of the places on the box's corners, the first of those that cover the least of the labels so far."""
  (x1, y1, x2, y2), (w, h), (height, width) = box, size, limits
  best, least = (0, 0, w, h), math.inf
  for y in (y1 - h, y1, y2 - h, y2):  # above, inside at the top, inside at the bottom, below
    for x in (x1, x2 - w):
      left, top = max(0, min(x, width - w)), max(0, min(y, height - h))
      place = (left, top, left + w, top + h)
      sides = ((min(place[k + 2], o[k + 2]) - max(place[k], o[k]) for k in (0, 1)) for o in taken)
      covered = sum(math.prod(max(0, side) for side in both) for both in sides)
      covered += abs(top - y) * w  # moved into the picture: away from its box's edge
      if covered < least:
        best, least = place, covered
  return best


def _dashed(draw: ImageDraw.ImageDraw, box: Rectangle, line: int) -> None:
  """A white dashed rectangle on a dark one, so that it shows on any background."""
  x1, y1, x2, y2 = box
  draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(30, 30, 30), width=line)
  dash = 4 * line
  for x in range(x1, x2, 2 * dash):
    for y in (y1, y2 - line):
      draw.rectangle((x, y, min(x + dash, x2) - 1, y + line - 1), fill="white")
  for y in range(y1, y2, 2 * dash):
    for x in (x1, x2 - line):
      draw.rectangle((x, y, x + line - 1, min(y + dash, y2) - 1), fill="white")


@functools.cache
def _colour(label: int) -> tuple[int, int, int]:
  """RGB of a class: beyond COLOURS, steps of the golden ratio round the colour circle keep them apart."""
  if label < len(COLOURS):
    return COLOURS[label]
  hue = (0.09 + label * 0.61803398875) % 1.0
  saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.9, 0.75))[label // 6 % 3]
  red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
  return round(255 * red), round(255 * green), round(255 * blue)


def _luminance(colour: tuple[int, int, int]) -> float:
  """WCAG's relative luminance: black has more contrast than white from 0.18 on."""
  return float(np.dot((np.array(colour) / 255) ** 2.2, (0.2126, 0.7152, 0.0722)))
