"""Colours of runs: they show on the page, and differ for readers who do not see red or green."""

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

# Machado, Oliveira, Fernandes (2009), severity 1: of linear RGB.
EYES = {
  "all": np.eye(3),
  "protanopia": np.array([
    [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
  "deuteranopia": np.array([
    [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
  c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
  f = np.cbrt(np.maximum(XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089], 0.008856))
  return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one, other):
  dark, light = sorted(float(linear(c) @ XYZ[1]) + 0.05 for c in (one, other))
  return light / dark


@pytest.mark.parametrize("dark", [False, True])
def test_colours_of_runs_show_and_differ(dark):
  css = files("iou_det.report").joinpath("page.css").read_text()
  names = re.findall(r"--(back|c\d): (#[0-9a-f]{6})", css)
  light = dict(names[:8])
  page = light | dict(names[8:]) if dark else light
  back = page.pop("back")
  assert len(page) == 7 and (back == "#ffffff") != dark
  assert min(contrast(c, back) for c in page.values()) >= 3  # WCAG 1.4.11
  for eye, matrix in EYES.items():
    seen = [lab(matrix @ linear(c)) for c in page.values()]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest >= 14, eye
