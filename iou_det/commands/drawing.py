"""Draws detections on images. Text by Pillow, which matplotlib needs anyway: OpenCV's letters are poor."""

import colorsys
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive

MIN_SIDE = 640  # smaller images are enlarged to about this before text goes on them
GAP = 8  # pixels between the pictures of a contact sheet


def draw_detections(
  image: UInt8[np.ndarray, "h w 3"],
  boxes: Float[np.ndarray, "n 4"],
  labels: Int[np.ndarray, " n"],
  scores: Float[np.ndarray, " n"],
  names: Sequence[str],
  *,
  ground_truth: Float[np.ndarray, "m 4"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
  """Draws boxes with class and score, the best on top; ground truth dashed in white.

  Args:
    image: RGB. If its longer side is below 640 px it is enlarged by the next whole factor.
    boxes: x1, y1, x2, y2 in pixels of `image`, x2 and y2 exclusive.
    labels: indices into `names`; each has its own colour, the same in every picture.
    ground_truth: boxes as `boxes`, drawn below the detections.

  Returns:
    A new RGB picture.
  """
  factor = max(1, math.ceil(MIN_SIDE / max(image.shape[:2])))
  height, width = factor * image.shape[0], factor * image.shape[1]
  line = max(2, round(max(height, width) / 320))
  font = _font(max(13, round(max(height, width) / 48)))
  picture = Image.fromarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))
  draw = ImageDraw.Draw(picture)

  if ground_truth is not None:
    for box in ground_truth:
      _dashed(draw, _pixels(box, factor, height, width), line)
  taken: list[Rectangle] = []
  order = np.argsort(-scores, kind="stable")
  for i in order[::-1]:
    x1, y1, x2, y2 = _pixels(boxes[i], factor, height, width)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=_colour(int(labels[i])), width=line)
  for i in order:  # the best detection's label gets the best place
    text = f"{names[labels[i]]} {scores[i]:.2f}"
    box = _pixels(boxes[i], factor, height, width)
    place = _place(box, _text_size(font, text, line), taken, (height, width))
    taken.append(place)
    colour = _colour(int(labels[i]))
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
    middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    draw.text(middle, text, fill=_ink(colour), font=font, anchor="mm")
  return np.array(picture)


def contact_sheet(
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, columns: int = 4, cell: int = 480
) -> UInt8[np.ndarray, "H W 3"]:
  """Puts pictures on a white grid, each as large as fits a square cell; a row is no taller than it must be.

  Args:
    images: RGB, any sizes, at least one.
    columns: pictures a row, fewer if there are not so many.
    cell: side of a cell in pixels.

  Raises:
    ValueError: without an image.
  """
  if not images:
    raise ValueError("a contact sheet needs at least one image")
  columns = min(columns, len(images))
  fitted = [_fit(image, cell) for image in images]
  width = columns * (cell + GAP) + GAP
  bands = [np.full((GAP, width, 3), 255, np.uint8)]
  for first in range(0, len(fitted), columns):
    row = fitted[first : first + columns]
    tall = max(len(image) for image in row)
    band = np.full((tall + GAP, width, 3), 255, np.uint8)
    for k, image in enumerate(row):
      y = (tall - image.shape[0]) // 2
      x = GAP + k * (cell + GAP) + (cell - image.shape[1]) // 2
      band[y : y + image.shape[0], x : x + image.shape[1]] = image
    bands.append(band)
  return np.concatenate(bands)


def _fit(image: UInt8[np.ndarray, "_ _ 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
  """Resized so that its longer side is `side`."""
  scale = side / max(image.shape[:2])
  size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _pixels(box: Float[np.ndarray, " 4"], factor: int, height: int, width: int) -> Rectangle:
  """Whole pixels of the enlarged picture, inside it and at least one wide and high."""
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
      covered = sum(_overlap(place, other) for other in taken)
      covered += abs(top - y) * w  # moved into the picture: away from its box's edge
      if covered < least:
        best, least = place, covered
  return best


def _overlap(a: Rectangle, b: Rectangle) -> int:
  return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


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


def _text_size(font: ImageFont.FreeTypeFont, text: str, line: int) -> tuple[int, int]:
  """Width and height of the label; the height is that of the font, the same for every text."""
  ascent, descent = font.getmetrics()
  return math.ceil(font.getlength(text)) + 3 * line, ascent + descent


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
  """DejaVu Sans as matplotlib ships it: the same letters on every machine."""
  return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


@functools.cache
def _colour(label: int) -> tuple[int, int, int]:
  """RGB of a class: steps of the golden ratio round the colour circle keep neighbours far apart."""
  hue = (0.02 + label * 0.61803398875) % 1.0
  saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.9, 0.75))[label // 6 % 3]
  red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
  return round(255 * red), round(255 * green), round(255 * blue)


def _ink(colour: tuple[int, int, int]) -> str:
  """Black or white, whichever reads better on the colour."""
  red, green, blue = colour
  return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "white"
