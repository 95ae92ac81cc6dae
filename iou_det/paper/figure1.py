"""Figure 1 of arXiv:1908.05641: how strongly an error of one offset pulls, with and without IoU balancing.

The weight of Eq. (4) takes the IoU of the whole box, so one offset alone gives an upper bound: the bounded
IoU of Eq. (9) and (10), which is the IoU where the other three offsets are right.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps

from iou_det.config import W_LOC
from iou_det.paper.canvas import BINS_COLOURMAP, drawing
from iou_det.paper.tables import write_csv

DELTA = 0.111  # as printed; the authors' code and our config say 0.11


def center_gradient_norm(
  d: Float64[np.ndarray, "*shape"], *, lambd: float, w_loc: float, delta: float = DELTA
) -> Float64[np.ndarray, "*shape"]:
  """Eq. (11): w_loc ((1 - |d|) / (1 + |d|))^lambda min(|d| / delta, 1).

  From |d| = 1 on, the boxes cannot overlap. Eq. (11) is no real number there (a negative base); the IoU is 0
  and so are weight and gradient for every lambda > 0: such a box is not pulled back at all. For lambda 0
  the weight is w_loc everywhere (0^0 = 1).

  Args:
    d: error of the dx (or dy) offset in anchor sizes, for an anchor of the ground truth's size.
    lambd: exponent >= 0.
    w_loc: factor of Eq. (4).
    delta: where smooth L1 turns linear, > 0.
  """
  size = np.abs(d)
  iou = np.maximum((1.0 - size) / (1.0 + size), 0.0)
  return w_loc * iou**lambd * np.minimum(size / delta, 1.0)


def size_gradient_norm(
  d: Float64[np.ndarray, "*shape"], *, lambd: float, w_loc: float, delta: float = DELTA
) -> Float64[np.ndarray, "*shape"]:
  """Eq. (12): w_loc e^(-lambda |d|) min(|d| / delta, 1).

  It falls below the loss without balancing from |d| = log(w_loc) / lambda on.

  Args:
    d: error of the dw (or dh) offset, the log of a ratio of sizes.
    lambd: exponent >= 0.
    w_loc: factor of Eq. (4).
    delta: where smooth L1 turns linear, > 0.
  """
  size = np.abs(d)
  return w_loc * np.exp(-lambd * size) * np.minimum(size / delta, 1.0)


def write(folder: Path, *, stamp: str = "") -> None:
  """Writes fig1.csv (d, then one column for each curve), fig1.png and fig1.svg.

  Args:
    folder: made if missing.
    stamp: drawn across the plot and in every row of the CSV, such as "smoke, not a result".
  """
  d = np.union1d(np.linspace(0.0, 1.5, 301), DELTA)  # 1 and the corner are among them
  panels = {
    "center": (center_gradient_norm, "|d| of cx or cy (anchor sizes)"),
    "size": (size_gradient_norm, "|d| of w or h (log of size ratio)"),
  }
  caption = (
    f"Eq. (11) and (12): anchor as large as the ground truth, δ = {DELTA}, w_loc of Table 4. λ = 0 is the "
    "standard smooth L1 loss; the others are upper bounds, reached where the other three offsets are right. "
    "A centre that is off by a whole box (|d| ≥ 1) has IoU 0 and no gradient for any λ > 0."
  )
  columns = {"d": d}
  with drawing(
    folder / "fig1", title="Gradient norm of the localization loss (Figure 1)", caption=caption, stamp=stamp,
    columns=2, height=4.2, sharey=True) as (_, axes):  # fmt: skip
    shades = colormaps[BINS_COLOURMAP](np.linspace(0.85, 0.0, len(W_LOC) - 1))
    colours = ["black", *shades]  # the baseline, then darker with lambda
    for axis, (name, (norm, label)) in zip(axes, panels.items(), strict=True):
      for colour, (lambd, w_loc) in zip(colours, W_LOC.items(), strict=True):
        curve = columns[f"{name}_{lambd}"] = norm(d, lambd=lambd, w_loc=w_loc)
        line = "--" if lambd == 0 else "-"
        axis.plot(d, curve, line, color=colour, label=f"λ = {lambd}, w_loc = {w_loc}")
      axis.set(xlabel=label, xlim=(0, d[-1]))
    axes[0].set(ylabel="gradient norm", ylim=(0, None))
    axes[1].legend()
  rows = np.stack(list(columns.values()), axis=1).tolist()
  write_csv(folder / "fig1.csv", list(columns), rows, stamp=stamp)
