"""Figure 1's curves: autodiff of our own loss, values worked out by hand, and what is written."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.config import W_LOC
from iou_det.ops import losses
from iou_det.paper.figures import DELTA, center_gradient_norm, figure1, size_gradient_norm
from iou_det.paper.output import Output

NORMS = {"center": center_gradient_norm, "size": size_gradient_norm}
SIDE = 37.0  # pixels of anchor and ground truth
GRID = np.concatenate(
  [
    [0.0, 1e-12, 1e-6],
    DELTA + np.array([-1e-9, 0.0, 1e-9]),
    1.0 + np.array([-1e-3, -1e-9, 0.0, 1e-9, 1e-3]),
    np.linspace(-2.0, 2.0, 81),
  ]
)


def bounded_iou(name, d):
  """IoU of an anchor and a ground truth of its size, by their corners, where all but one offset are right."""
  one = jnp.ones_like(d)
  centre, size = (d, one) if name == "center" else (0.0 * d, jnp.exp(d))
  left, right = SIDE * (centre - size / 2), SIDE * (centre + size / 2)
  overlap = jnp.maximum(jnp.minimum(right, SIDE / 2) - jnp.maximum(left, -SIDE / 2), 0.0)
  return overlap / (right - left + SIDE - overlap)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("lambd", W_LOC)
def test_curves_are_the_gradient_of_our_loss(name, lambd):
  def loss(d):
    weight = losses.iou_balanced_localization_weights(bounded_iou(name, d), lambd=lambd, w_loc=W_LOC[lambd])
    return (weight * losses.smooth_l1(d, delta=DELTA)).sum()

  with jax.enable_x64(True):
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(GRID)))
  assert gradient.dtype == np.float64
  curve = NORMS[name](GRID, lambd=lambd, w_loc=W_LOC[lambd])
  np.testing.assert_allclose(curve, np.abs(gradient), rtol=0, atol=1e-6)
  np.testing.assert_array_equal(np.sign(gradient)[np.abs(GRID) < 1], np.sign(GRID)[np.abs(GRID) < 1])


@pytest.mark.parametrize(
  "name, d, lambd, expected",
  [
    ("center", 0.0555, 0.0, 0.5),  # half of delta
    ("center", 0.5, 1.0, 2.226 / 3),
    ("center", -0.5, 1.0, 2.226 / 3),
    ("center", 0.6, 0.5, 1.575 / 2),
    ("center", 0.5, 1.5, 0.586780),  # 3.049 / (3 sqrt 3)
    ("center", 0.111, 1.0, 1.781201),  # 2.226 * 0.889 / 1.111
    ("size", 0.0555, 0.0, 0.5),
    ("size", 0.5, 1.0, 1.350137),  # 2.226 * 0.606531
    ("size", 0.111, 1.0, 1.992134),  # 2.226 * 0.894939
    ("size", 1.0, 1.8, 0.603175),  # 3.649 * 0.165299
    ("size", 1.5, 0.0, 1.0),
  ],
)
def test_values_by_hand(name, d, lambd, expected):
  value = NORMS[name](np.array([d]), lambd=lambd, w_loc=W_LOC[lambd])
  np.testing.assert_allclose(value, expected, atol=1e-6)


def test_a_centre_off_by_a_whole_box_has_no_gradient_unless_unbalanced():
  d = np.array([1.0, 1.2, 40.0, -3.0])
  for lambd, w_loc in W_LOC.items():
    expected = 1.0 if lambd == 0 else 0.0
    np.testing.assert_array_equal(center_gradient_norm(d, lambd=lambd, w_loc=w_loc), expected)
    assert (size_gradient_norm(d, lambd=lambd, w_loc=w_loc) > 0).all()


def test_files_hold_the_curves(tmp_path):
  figure1(Output(tmp_path / "new", "", "make it", smoke=True))
  assert {p.name for p in (tmp_path / "new").iterdir()} == {"fig1.csv", "fig1.png", "fig1.svg"}
  with (tmp_path / "new" / "fig1.csv").open() as file:
    rows = list(csv.DictReader(file))
  d = np.array([float(row["d"]) for row in rows])
  assert {0.0, DELTA, 1.0} <= set(d) and (np.diff(d) > 0).all()
  curves = [f"{name}_{lambd}" for name in NORMS for lambd in (0.0, 0.5, 1.0, 1.5, 1.8)]
  assert list(rows[0]) == ["d", *curves, "stamp"]
  for name, norm in NORMS.items():
    for lambd, w_loc in W_LOC.items():
      column = [float(row[f"{name}_{lambd}"]) for row in rows]
      np.testing.assert_array_equal(column, norm(d, lambd=lambd, w_loc=w_loc))
  assert {row["stamp"] for row in rows} == {"smoke, not a result"}
