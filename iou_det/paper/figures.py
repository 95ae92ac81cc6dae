"""Figures 1 to 3 of arXiv:1908.05641, and what the same detections tell beyond them.

Figure 1 shows how strongly an error of one offset pulls, with and without IoU balancing. The weight of Eq.
(4) takes the IoU of the whole box, so one offset alone gives an upper bound: the bounded IoU of Eq. (9) and
(10), which is the IoU where the other three offsets are right.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps

from iou_det.config import W_LOC
from iou_det.evaluation import overlap
from iou_det.evaluation.results import Results
from iou_det.paper import plots
from iou_det.paper.output import Cell, Output, Plot
from iou_det.paper.report import Intervals, Row, ap_differences

Array = Float64[np.ndarray, "*shape"]
DELTA = 0.111  # where smooth L1 turns linear, as printed; the authors' code and our config say 0.11
RULE = (
  "A detection's IoU is the best with an object of its class in its image, whatever its rank; several may "
  "share an object."
)


def center_gradient_norm(d: Array, *, lambd: float, w_loc: float) -> Array:
  """Eq. (11): w_loc ((1 - |d|) / (1 + |d|))^lambda min(|d| / delta, 1).

  From |d| = 1 on, the boxes cannot overlap. Eq. (11) is no real number there (a negative base); the IoU is 0
  and so are weight and gradient for every lambda > 0: such a box is not pulled back at all. For lambda 0
  the weight is w_loc everywhere (0^0 = 1). `d` is the error of the dx (or dy) offset in anchor sizes, for an
  anchor of the ground truth's size.
  """
  size = np.abs(d)
  iou = np.maximum((1.0 - size) / (1.0 + size), 0.0)
  return w_loc * iou**lambd * np.minimum(size / DELTA, 1.0)


def size_gradient_norm(d: Array, *, lambd: float, w_loc: float) -> Array:
  """Eq. (12): w_loc e^(-lambda |d|) min(|d| / delta, 1); `d` is the error of the dw (or dh) offset.

  It falls below the loss without balancing from |d| = log(w_loc) / lambda on.
  """
  size = np.abs(d)
  return w_loc * np.exp(-lambd * size) * np.minimum(size / DELTA, 1.0)


def figure1(output: Output) -> None:
  """Writes fig1; its CSV has d, then one column for each curve."""
  d = np.union1d(np.linspace(0.0, 1.5, 301), DELTA)  # 1 and the corner are among them
  curves = {
    "center": (center_gradient_norm, "|d| of cx or cy (anchor sizes)"),
    "size": (size_gradient_norm, "|d| of w or h (log of size ratio)"),
  }
  caption = (
    f"Eq. (11) and (12): anchor as large as the ground truth, δ = {DELTA}, w_loc of Table 4. λ = 0 is the "
    "standard smooth L1 loss; the others are upper bounds, reached where the other three offsets are right. "
    "A centre that is off by a whole box (|d| ≥ 1) has IoU 0 and no gradient for any λ > 0."
  )
  columns = {"d": d}
  plot = Plot(output, "fig1", "Gradient norm of the localization loss (Figure 1)", caption)
  with plot.panels(4.2, ncols=2, sharey=True) as axes:
    shades = colormaps[plots.BINS_COLOURMAP](np.linspace(0.85, 0.0, len(W_LOC) - 1))
    colours = ["black", *shades]  # the baseline, then darker with lambda
    for axis, (name, (norm, label)) in zip(axes, curves.items(), strict=True):
      for colour, (lambd, w_loc) in zip(colours, W_LOC.items(), strict=True):
        curve = columns[f"{name}_{lambd}"] = norm(d, lambd=lambd, w_loc=w_loc)
        line = "--" if lambd == 0 else "-"
        axis.plot(d, curve, line, color=colour, label=f"λ = {lambd}, w_loc = {w_loc}")
      axis.set(xlabel=label, xlim=(0, d[-1]))
    axes[0].set(ylabel="gradient norm", ylim=(0, None))
    axes[1].legend(reverse=True)  # in the order of the curves
  plot.csv(list(columns), np.stack(list(columns.values()), axis=1).tolist())


def figure2(rows: Sequence[Row], output: Output) -> str:
  """Mean score in each bin of IoU; score against IoU; Spearman's correlation and NMS regret as a table."""
  overlaps = {row.label: pooled(row.results) for row in rows}
  caption = f"{RULE} {output.source}"
  plot = Plot(output, "fig2", "Figure 2: mean score by IoU", caption)
  plots.mean_scores(plot, {label: overlap.score_per_iou(o) for label, o in overlaps.items()})
  correlation = {label: overlap.rank_correlation(o) for label, o in overlaps.items()}
  plot = Plot(output, "score_against_iou", "Score against IoU", caption)
  plots.score_against_iou(plot, overlaps, correlation)
  body: list[list[Cell]] = []
  for row in rows:
    regrets = [regret(r) for r in row.results if r.config.eval.nms == "hard"]  # others suppress nothing
    on_object, regretted = sum(r.on_object for r in regrets), sum(r.regretted for r in regrets)
    lost = sum((r.mean_loss or 0.0) * r.regretted for r in regrets)
    located = overlap.rank_correlation(overlaps[row.label], min_iou=overlap.LOCATED)
    cells: list[Cell] = [row.label, correlation[row.label], located, on_object if regrets else None]
    cells += [100 * regretted / on_object if on_object else None, lost / regretted if regretted else None]
    body.append(cells)
  columns = ["run", "Spearman, all", "Spearman, IoU >= 0.5", "boxes on objects", "NMS regret (%)", "IoU lost"]
  return output.table(
    "ranking",
    columns,
    body,
    caption="Do scores rank boxes by how well they fit? Spearman's correlation of score and IoU; NMS regret: "
    "share of the boxes on an object (IoU >= 0.5) kept by hard NMS that suppressed a box with a higher IoU "
    f"with it, and the mean IoU lost there. {caption}",
    formats={columns[1]: ".3f", columns[2]: ".3f", columns[5]: ".3f"},
  )


def figure3(rows: Sequence[Row], output: Output) -> str:
  """Share of detections above each IoU: of all and of those on an object; AP at each IoU to the first row."""
  ap_differences(output, Intervals(rows, smoke=output.smoke))
  shares = {row.label: overlap.share_above_iou(pooled(row.results)) for row in rows}
  thresholds = next(iter(shares.values())).thresholds
  caption = f"{RULE} {output.source}"
  title = "Figure 3: share of all detections above each IoU"
  of_all = {label: np.nan_to_num(s.of_all) for label, s in shares.items()}
  plots.shares_above(Plot(output, "fig3", title, caption), thresholds, of_all)
  of_located = {label: np.nan_to_num(s.of_located) for label, s in shares.items()}
  plot = Plot(output, "fig3_located", title.replace("all detections", "detections with IoU >= 0.5"), caption)
  plots.shares_above(plot, thresholds, of_located)
  body = [[run, s.detections, s.located, *(100 * of_all[run][::2]).tolist()] for run, s in shares.items()]
  columns = ["run", "detections", "IoU >= 0.5", *(f"share above {t:.1f} (%)" for t in thresholds[::2])]
  return output.table("shares", columns, body, caption=f"{title}. {caption}")


def pooled(results: Sequence[Results]) -> overlap.Overlaps:
  """Scores and IoUs of all seeds' detections together."""
  each = [overlap.best_ious(r.truth, r.detections()) for r in results]
  scores, ious = (np.concatenate([o[i] for o in each]) for i in (0, 1))
  return overlap.Overlaps(scores, ious, sum(o.on_crowd for o in each))


def regret(results: Results) -> overlap.Regret:
  """NMS regret of a run, with the hard NMS that it was scored with."""
  e = results.config.eval
  found = overlap.load_candidates(results.candidates)
  return overlap.nms_regret(results.truth, found, nms_iou=e.nms_iou, max_detections=e.max_detections)
