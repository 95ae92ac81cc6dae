"""Device side of the input, inside the step's jit: resize, flip, jitter, change colours, normalise, pad.

Per image this is one affine map per axis from network pixels to canvas pixels, sampled bilinearly with
half-pixel centres and clamped edges, as OpenCV's INTER_LINEAR does it: 6e-5 of 255 levels apart at most for
float32 images (78 sizes up to 3,000 pixels, OpenCV 4.11 and 5.0), and one level for uint8 images, which it
also rounds in between. Positions are ratios of integers and exact to float32's last digit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped
from ml_collections import ConfigDict

from iou_det.data.colour import jitter_colour, jitters_colour
from iou_det.forms import ANY, Forms
from iou_det.ops.boxes import mirrored as mirrored_boxes

TOLERANCE = 1e-3  # pixels: rounding of a box that ends with its image is no crop


class Inputs(NamedTuple):
  """What the network and the losses see; boxes are x1, y1, x2, y2 in network pixels, exclusive ends."""

  images: Float[Array, "batch height width 3"]  # normalised; 0 in the padding
  boxes: Float[Array, "batch boxes 4"]
  labels: Int[Array, "batch boxes"]
  valid: Bool[Array, "batch boxes"]
  cropped: Int[Array, " batch"]  # boxes of which crop or image edge left less than a pixel: not valid
  image_size: Int[Array, "batch 2"]  # height and width of the content, pixels
  scale: Float[Array, "batch 2"]  # network pixels per original pixel, y and x


def preprocess(
  batch: dict[str, Array],
  data: ConfigDict,
  size: tuple[int, int],
  convention: str,
  augment: bool = False,
  forms: Forms = ANY,
) -> Inputs:
  """Turns a batch of canvases (see `pipeline.train_batches`) into the network's input.

  Images are scaled by min(short / shorter side, long / longer side), sides rounded to whole pixels as
  mmdetection does, or cut to them as torchvision does (data.rounding).

  Args:
    data: the config's section.
    size: height and width of the input, pixels.
    convention: "legacy" scales inclusive corners (x2 - 1), as mmdetection 0.6; the others every edge.
    augment: flip, transpose (which needs a square input), multiply the size after resizing by a factor of
      `scale_jitter`, cropping at a random place what exceeds the input, and change colours as
      `jitter_colour`. An image's random numbers follow from its seed, epoch and record index, wherever in
      whichever batch it is.
  """
  if augment and data.transpose and size[0] != size[1]:
    raise ValueError(f"transposition needs a square input, got {size[0]}x{size[1]}")
  mean, std = jnp.array(tuple(data.mean)), jnp.array(tuple(data.std))
  limit = jnp.array(size)

  def one(row):
    image, image_size, original_size = row["image"], row["image_size"], row["original_size"]
    boxes, valid = row["boxes"], row["valid"]
    resized = _resized(image_size, data.short, data.long, data.rounding)
    offset = jnp.zeros(2, jnp.int32)
    if augment:
      of_epoch = jax.random.fold_in(jax.random.key(row["seed"]), row["epoch"])
      own_key = jax.random.fold_in(of_epoch, row["index"])
      random = jax.random.uniform(own_key, (6,))
      low, high = data.scale_jitter
      if (low, high) != (1.0, 1.0):
        jitter = low + (high - low) * random[3]
        resized = jnp.maximum(jnp.floor(resized * jitter + 0.5).astype(jnp.int32), 1)
        excess = jnp.maximum(resized - limit, 0)
        offset = jnp.minimum(jnp.floor((excess + 1) * random[4:6]).astype(jnp.int32), excess)
    seen = jnp.minimum(resized, limit)

    ratio = resized / image_size
    if convention == "legacy":  # the host scaled the exclusive ends: one original pixel is `image / original`
      last = jnp.tile(image_size[::-1] / original_size[::-1], 2) * jnp.array([0.0, 0.0, 1.0, 1.0])
      boxes = (boxes - last) * jnp.tile(ratio[::-1], 2) + jnp.array([0.0, 0.0, 1.0, 1.0])
    else:
      boxes = boxes * jnp.tile(ratio[::-1], 2)
    boxes = boxes - jnp.tile(offset[::-1], 2)
    # Up to their last line images have rows and columns in the order that suits what comes next.
    rows, columns = (_by_phase(side) if forms.products else jnp.arange(side) for side in size)
    y, x = rows, columns
    if augment:
      flip_x, flip_y = random[0] < data.flip_horizontal, random[1] < data.flip_vertical
      y = jnp.where(flip_y, seen[0] - 1 - y, y)
      x = jnp.where(flip_x, seen[1] - 1 - x, x)
      x1, y1, x2, y2 = boxes.T
      x1, x2 = jnp.where(flip_x, seen[1] - x2, x1), jnp.where(flip_x, seen[1] - x1, x2)
      y1, y2 = jnp.where(flip_y, seen[0] - y2, y1), jnp.where(flip_y, seen[0] - y1, y2)
      boxes = jnp.stack([x1, y1, x2, y2], axis=-1)

    if forms.products:
      down = _shares(y + offset[0], image_size[0], resized[0], image.shape[0])
      across = _shares(x + offset[1], image_size[1], resized[1], image.shape[1])
      # Three products of bfloat16 each: pixels are such, and so no share loses more than its 17th bit.
      pixels = jnp.einsum("yh,hwc->cyw", down, image.astype(jnp.float32), precision="high")
      pixels = jnp.einsum("cyw,xw->cyx", pixels, across, precision="high").transpose(1, 2, 0)
    else:
      pixels = _sample(image, y + offset[0], image_size[0], resized[0])
      pixels = _sample(pixels.swapaxes(0, 1), x + offset[1], image_size[1], resized[1])
      pixels = pixels.swapaxes(0, 1)
    inside = (rows < seen[0])[:, None] & (columns < seen[1])
    if augment and jitters_colour(data):
      pixels = jitter_colour(pixels, inside, data, jax.random.fold_in(own_key, 1))
    pixels = (pixels - mean) / std
    pixels = jnp.where(inside[..., None], pixels, 0.0)

    cropped = jnp.zeros((), jnp.int32)
    if augment:
      before, boxes = boxes, jnp.clip(boxes, 0.0, jnp.tile(seen[::-1], 2))
      # A box that was small before loses nothing by clipping and stays, as in mmdetection.
      least = jnp.minimum(before[:, 2:] - before[:, :2], 1.0)
      left = valid & (boxes[:, 2:] - boxes[:, :2] >= least - TOLERANCE).all(axis=-1)
      cropped, valid = (valid & ~left).sum(), left
      if data.transpose:
        turn = random[2] < data.transpose
        pixels = jnp.where(turn, pixels.swapaxes(0, 1), pixels)
        boxes = jnp.where(turn, boxes[:, jnp.array([1, 0, 3, 2])], boxes)
        seen = jnp.where(turn, seen[::-1], seen)
    scale = resized / original_size
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    pixels = _in_order(pixels) if forms.products else pixels
    return pixels, boxes, valid, cropped, seen, scale

  images, boxes, valid, cropped, image_size, scale = jax.vmap(one)(batch)
  return Inputs(images, boxes, batch["labels"], valid, cropped, image_size, scale)


def mirrored(inputs: Inputs) -> Inputs:
  """The same with the content of each image, and its boxes, flipped from left to right."""

  def one(image, boxes, valid, content):
    width = content[1]
    x = jnp.arange(image.shape[1])
    image = jnp.where((x < width)[None, :, None], image[:, jnp.maximum(width - 1 - x, 0)], 0.0)
    return image, jnp.where(valid[:, None], mirrored_boxes(boxes, width), 0.0)

  images, boxes = jax.vmap(one)(inputs.images, inputs.boxes, inputs.valid, inputs.image_size)
  return inputs._replace(images=images, boxes=boxes)


def _resized(image_size: Int[Array, "2"], short: int, long: int, rounding: str) -> Int[Array, "2"]:
  """int(side * factor + 0.5), factor = min(short / shorter side, long / longer side), in whole numbers.

  "floor" is int(side * factor) of torchvision, in whose doubles a product that is a whole number may come
  out below it: its 387 pixels scaled to 800 are 799.
  """
  smaller, larger = image_size.min(), image_size.max()
  by_long = short * larger > long * smaller
  numerator, denominator = jnp.where(by_long, long, short), jnp.where(by_long, larger, smaller)
  if rounding == "floor":
    whole, rest = image_size * numerator // denominator, image_size * numerator % denominator
    below = (rest == 0) & _double_is_below(image_size, numerator, denominator, whole)
    return jnp.maximum(whole - below, 1)
  return jnp.maximum((2 * image_size * numerator + denominator) // (2 * denominator), 1)


def _double_is_below(
  side: Int[Array, "2"], numerator: Int[Array, ""], denominator: Int[Array, ""], whole: Int[Array, "2"]
) -> Bool[Array, "2"]:
  """Whether side * (numerator / denominator) in doubles is less than the whole number that it is exactly.

  Of all numbers at most 4096. With 2^s <= numerator / denominator < 2^(s + 1) the double of the quotient is
  rounded at 2^(s - 52). It lies r / denominator such steps below it, r being numerator * 2^(52 - s) modulo
  the denominator, in -denominator / 2 to denominator / 2; and the product is rounded up to `whole` unless
  the error, times `side`, exceeds half of the step below `whole`.
  """
  # Exact: powers of two are found by comparing, all numbers stay below 2^26.
  powers = 2 ** jnp.arange(13)
  up = (powers * denominator <= numerator).sum() - 1  # s if s >= 0, else -1
  down = (numerator * powers < denominator).sum()  # -s if s < 0, else 0
  s = jnp.where(down > 0, -down, up)
  rest, power = numerator % denominator, jnp.ones((), jnp.int32)
  for bit in (64, 32, 16, 8, 4, 2, 1):  # 2^(52 - s) modulo the denominator, by squaring
    power = power * power * jnp.where((52 - s) & bit, 2, 1) % denominator
  rest = rest * power % denominator
  rest = jnp.where(2 * rest > denominator, rest - denominator, rest)
  # The step below a power of two is that of the numbers below it.
  exponent = (powers < whole[:, None]).sum(axis=1) - 1
  left, right = 2 * side * rest, denominator * 2**exponent
  return jnp.where(s >= 0, left * 2 ** jnp.maximum(s, 0) > right, left > right * 2 ** jnp.maximum(-s, 0))


def _sample(
  rows: Shaped[Array, "rows ..."], at: Int[Array, " n"], old: Int[Array, ""], new: Int[Array, ""]
) -> Float[Array, "n ..."]:
  """Rows `at` of the first `old` rows resized to `new` rows by linear interpolation."""
  first, second, share = _neighbours(at, old, new)
  share = share[:, None, None]
  return rows[first] * (1.0 - share) + rows[second] * share


def _shares(
  at: Int[Array, " n"], old: Int[Array, ""], new: Int[Array, ""], rows: int
) -> Float[Array, "n rows"]:
  """`_sample` as a matrix to multiply with."""
  first, second, share = (x[:, None] for x in _neighbours(at, old, new))
  row = jnp.arange(rows)
  return jnp.where(first == row, 1.0 - share, 0.0) + jnp.where(second == row, share, 0.0)


def _neighbours(
  at: Int[Array, " n"], old: Int[Array, ""], new: Int[Array, ""]
) -> tuple[Int[Array, " n"], Int[Array, " n"], Float[Array, " n"]]:
  """The two of `old` rows that each of `new` rows lies between, and the second one's share."""
  # (at + 0.5) * old / new - 0.5, as a whole number and a rest.
  numerator = (2 * at + 1) * old - new
  first = numerator // (2 * new)
  share = ((numerator - first * 2 * new) / (2 * new)).astype(jnp.float32)
  return jnp.clip(first, 0, old - 1), jnp.clip(first + 1, 0, old - 1), share


PHASES = 4  # the side of the stem's blocks of pixels, or a multiple of it; every input's side is one


def _by_phase(side: int) -> Int[Array, " {side}"]:
  """The places 0, 4, 8, ..., then 1, 5, 9, ...: blocks of 4x4 pixels as channels are whole planes then."""
  return jnp.arange(side).reshape(-1, PHASES).T.reshape(-1)


def _in_order(pixels: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
  """The inverse of `_by_phase` for rows and columns; a compiler joins it with the stem's cut into blocks."""
  height, width, _ = pixels.shape
  planes = pixels.reshape(PHASES, height // PHASES, PHASES, width // PHASES, 3)
  return planes.transpose(1, 0, 3, 2, 4).reshape(height, width, 3)
