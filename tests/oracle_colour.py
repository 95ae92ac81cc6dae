"""Colour changes as torchvision's ColorJitter, a pixel at a time in float64. Never imports iou_det."""

import colorsys

import numpy as np


def grey(pixel):
  return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def blend(value, other, factor):
  return min(max(factor * value + (1 - factor) * other, 0.0), 255.0)


def jitter(image, brightness, contrast, saturation, hue):
  """An image [h, w, 3] in 0..255; factors of the three, turns of the colour circle; None: left out."""
  image = np.float64(image)
  places = [(y, x) for y in range(image.shape[0]) for x in range(image.shape[1])]
  if brightness is not None:
    for at in places:
      image[at] = [blend(v, 0.0, brightness) for v in image[at]]
  if contrast is not None:
    mean = sum(grey(image[at]) for at in places) / len(places)
    for at in places:
      image[at] = [blend(v, mean, contrast) for v in image[at]]
  if saturation is not None:
    for at in places:
      image[at] = [blend(v, grey(image[at]), saturation) for v in image[at]]
  if hue is not None:
    for at in places:
      h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255))
      image[at] = np.array(colorsys.hsv_to_rgb((h + hue) % 1.0, s, v)) * 255
  return image
