"""Overlaps and NMS regret against pycocotools' IoU, plain loops, known scenes and `detect` itself."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask

from iou_det.errors import UserError
from iou_det.evaluation import coco, overlap
from iou_det.evaluation.overlap import Boxes, Overlaps, nms_regret, suppress
from tests import oracles
from tests.detecting import detect
from tests.evaluation.test_bootstrap import draw


def as_boxes(rows):
  return overlap.as_boxes(coco.Results.of(rows))


def best_ious(truth, rows):
  return overlap.best_ious(truth, coco.Results.of(rows))


def scene(annotations, detections):
  """One image with classes 1 and 2. Annotations: (class, box, crowd); detections: (class, box, score)."""
  truth = {
    "images": [{"id": 9}, {"id": 4}],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    "annotations": [
      {"id": i + 1, "image_id": 9, "category_id": k, "bbox": box, "iscrowd": crowd}
      for i, (k, box, crowd) in enumerate(annotations)
    ],
  }
  return truth, [{"image_id": 9, "category_id": k, "bbox": b, "score": s} for k, b, s in detections]


def overlaps(scores, ious):
  return Overlaps(np.array(scores, float), np.array(ious, float), 0)


@pytest.mark.parametrize("seed", range(3))
def test_best_ious_are_pycocotools_ious(seed):
  truth, results = draw(seed)
  got = best_ious(truth, results)
  scores, ious, crowded = [], [], 0
  for r in results:
    same = [a for a in truth["annotations"] if all(a[key] == r[key] for key in ("image_id", "category_id"))]
    row = mask.iou([r["bbox"]], [a["bbox"] for a in same], [a["iscrowd"] for a in same]) if same else [[]]
    best = {
      crowd: max((u for u, a in zip(row[0], same, strict=True) if a["iscrowd"] == crowd), default=0.0)
      for crowd in (0, 1)
    }
    if best[0] < 0.5 <= best[1]:
      crowded += 1
    else:
      scores.append(r["score"])
      ious.append(best[0])
  np.testing.assert_array_equal(got.scores, scores)
  np.testing.assert_allclose(got.ious, ious, rtol=0, atol=1e-12)
  assert got.on_crowd == crowded > 0
  assert 0 < np.count_nonzero(got.ious == 0) < len(ious)


def test_best_ious_on_a_known_scene():
  """Two detections share an object; a crowd takes only what is on no object; classes do not mix."""
  annotations = [(1, [0, 0, 10, 10], 0), (1, [0, 0, 100, 100], 1), (2, [50, 50, 10, 10], 0)]
  detections = [
    (1, [0, 0, 10, 10], 0.9),
    (1, [0, 0, 10, 5], 0.8),
    (1, [40, 40, 10, 10], 0.7),
    (2, [50, 55, 10, 10], 0.6),
    (2, [0, 0, 10, 10], 0.5),
    (1, [96, 0, 10, 10], 0.4),
  ]
  got = best_ious(*scene(annotations, detections))
  np.testing.assert_array_equal(got.scores, [0.9, 0.8, 0.6, 0.5, 0.4])  # 0.7 is in the crowd
  np.testing.assert_allclose(got.ious, [1, 0.5, 1 / 3, 0, 0])
  assert got.on_crowd == 1


def test_an_iou_is_never_above_one_so_no_bin_misses_it():
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 100, (500, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(0, 1, (500, 2)) ** 4], axis=1)
  ious = overlap.pairwise_iou(boxes, boxes)
  assert ious.max() == 1.0 and (np.diag(ious) == 1.0).all()
  np.testing.assert_array_equal(overlap.pairwise_iou(boxes[:1], boxes[:1, [0, 1, 0, 1]]), [[0.0]])
  np.testing.assert_array_equal(overlap.pairwise_iou(*[boxes[:1, [0, 1, 0, 1]]] * 2), [[0.0]])


def test_ious_and_shares_inside_are_the_float64_formula():
  """Empty boxes and boxes left of the image among them; also of none."""
  rng = np.random.default_rng(1)
  corner, side = (
    rng.uniform(-20, 100, (90, 2)),
    rng.uniform(0, 80, (90, 2)) * (rng.uniform(size=(90, 1)) < 0.9),
  )
  boxes = np.concatenate([corner, corner + side], axis=1)
  a, b = boxes[:60], boxes[50:]  # ten of them the same
  expected = oracles.pairwise_iou(a, b)
  assert (np.diff(a[:, [0, 2]]) == 0).any() and 0.1 < (expected > 0).mean() < 0.9
  np.testing.assert_allclose(overlap.pairwise_iou(a, b), expected, rtol=0, atol=1e-13)
  low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
  area = np.prod(a[:, 2:] - a[:, :2], axis=1, keepdims=True)
  shares = np.prod(np.maximum(high - low, 0), axis=2) / np.where(area > 0, area, 1)
  np.testing.assert_allclose(overlap.pairwise_iou(a, b, inside=True), shares, rtol=0, atol=1e-13)
  for rows, columns in ((0, 3), (3, 0), (0, 0)):
    assert overlap.pairwise_iou(a[:rows], b[:columns]).shape == (rows, columns)


def test_nothing_detected_nothing_there():
  truth, _ = scene([(1, [0, 0, 10, 10], 0)], [])
  got = best_ious(truth, [])
  assert got.scores.shape == got.ious.shape == (0,) and got.on_crowd == 0
  figure2, figure3 = overlap.score_per_iou(got), overlap.share_above_iou(got)
  assert np.isnan(figure2.mean_score).all() and not figure2.counts.any()
  assert np.isnan([figure3.of_all, figure3.of_located]).all() and figure3.detections == figure3.located == 0
  assert overlap.rank_correlation(got) is None
  assert nms_regret(truth, as_boxes([])) == (0, 0, 0, None, None)
  alone = best_ious(
    truth | {"annotations": []}, [{"image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]
  )
  np.testing.assert_array_equal(alone.ious, [0.0])
  assert np.isnan(overlap.share_above_iou(alone).of_located).all()


def test_score_per_iou():
  got = overlap.score_per_iou(overlaps([0.2, 0.4, 0.9, 0.7, 0.1], [0.3, 0.39, 1.0, 0.9, 0.0]))
  np.testing.assert_array_equal(got.counts, [1, 0, 0, 2, 0, 0, 0, 0, 0, 2])  # 0.3 opens a bin, 1 closes one
  np.testing.assert_allclose(got.mean_score[[0, 3, 9]], [0.1, 0.3, 0.8])
  assert np.isnan(got.mean_score[[1, 2, 4, 5, 6, 7, 8]]).all()
  got = overlap.score_per_iou(overlaps([0.2, 0.4], [0.2, 0.6]), np.array([0.5, 1.0]))
  assert got.counts.tolist() == [1] and got.mean_score == pytest.approx([0.4])


def test_share_above_iou():
  got = overlap.share_above_iou(overlaps([0.5] * 5, [0.0, 0.49, 0.5, 0.72, 0.95]))
  assert got.thresholds.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
  np.testing.assert_allclose(got.of_all * 5, [3, 2, 2, 2, 2, 1, 1, 1, 1, 1])
  np.testing.assert_allclose(got.of_located * 3, [3, 2, 2, 2, 2, 1, 1, 1, 1, 1])
  assert (got.detections, got.located) == (5, 3)


def test_rank_correlation():
  rng = np.random.default_rng(0)
  scores, ious = rng.permutation(30) / 30, rng.permutation(30) / 30
  ranks = np.argsort(np.argsort(scores)), np.argsort(np.argsort(ious))
  d2 = np.square(ranks[0] - ranks[1]).sum()
  assert overlap.rank_correlation(overlaps(scores, ious)) == pytest.approx(1 - 6 * d2 / (30 * (30**2 - 1)))
  bent = overlaps([0.9, 0.1, 0.2, 0.8], [0.1, 0.5, 0.6, 0.99])
  assert overlap.rank_correlation(bent, 0.5) == 1.0
  assert overlap.rank_correlation(bent) == pytest.approx(-0.2)
  for nothing in (overlaps([0.5, 0.5], [0.6, 0.7]), overlaps([0.5, 0.4], [0.6, 0.6]), overlaps([0.1], [0.9])):
    assert overlap.rank_correlation(nothing, 0.5) is None


def test_regret_on_a_known_scene():
  """The third box fits the object better than the kept first; the rest must not count."""
  annotations = [(1, [0, 0, 100, 100], 0), (1, [300, 0, 100, 100], 0), (2, [0, 0, 100, 100], 0)]
  candidates = [
    (1, [0, 0, 100, 60], 0.9),  # kept, IoU 0.6
    (1, [0, 0, 100, 70], 0.8),  # suppressed, 0.7
    (1, [0, 0, 100, 90], 0.7),  # suppressed, 0.9: the regret, 0.3 lost
    (1, [300, 0, 100, 99], 0.6),  # kept, 0.99
    (1, [300, 0, 100, 80], 0.5),  # suppressed, fits less
    (2, [0, 0, 100, 80], 0.4),  # kept: another class
    (1, [300, 0, 100, 40], 0.3),  # kept (IoU 0.404 with the better box), but on no object
    (2, [500, 0, 10, 10], 0.2),  # kept, on nothing
    (2, [501, 0, 10, 10], 0.1),  # suppressed
  ]
  truth, results = scene(annotations, candidates)
  got = nms_regret(truth, as_boxes(results))
  assert got[:4] == (5, 3, 1, 1 / 3) and got.mean_loss == pytest.approx(0.3)
  kept, by = suppress(as_boxes(results))
  assert kept.tolist() == [1, 0, 0, 1, 0, 1, 1, 1, 0]
  assert by.tolist() == [-1, 0, 0, -1, 3, -1, -1, -1, 7]
  # The best two of all classes; a higher threshold keeps the better box beside the worse one.
  assert nms_regret(truth, as_boxes(results), max_detections=2)[:3] == (2, 2, 1)
  higher = nms_regret(truth, as_boxes(results), nms_iou=0.8)
  assert higher[:3] == (6, 4, 1) and higher.mean_loss == pytest.approx(0.1)
  as_crowd = [(k, box, 1) for k, box, _ in annotations]
  assert nms_regret(scene(as_crowd, [])[0], as_boxes(results)) == (5, 0, 0, None, None)


def test_a_lost_neighbour_is_no_regret_and_a_box_at_the_threshold_stays():
  """The suppressed box is the second object itself, but it fits the first, the kept one's, less well."""
  annotations = [(1, [0, 0, 100, 100], 0), (1, [20, 0, 100, 100], 0)]
  truth, results = scene(annotations, [(1, [0, 0, 100, 90], 0.9), (1, [20, 0, 100, 100], 0.8)])
  assert nms_regret(truth, as_boxes(results)) == (1, 1, 0, 0.0, None)
  halves = scene([], [(1, [0, 0, 10, 10], 0.9), (1, [0, 0, 10, 5], 0.8)])[1]
  assert suppress(as_boxes(halves))[0].all()


def corners(row):
  x, y, w, h = row["bbox"]
  return x, y, x + w, y + h


def slow_regret(truth, results, nms_iou, most):
  """Everything by loops over dicts, in order of score."""
  kept, victims = [], {}
  for i in sorted(range(len(results)), key=lambda i: (-results[i]["score"], i)):
    r = results[i]
    rivals = [
      j
      for j in kept
      if all(results[j][key] == r[key] for key in ("image_id", "category_id"))
      and oracles.iou(corners(results[j]), corners(r)) > nms_iou
    ]
    if rivals:
      victims.setdefault(rivals[0], []).append(i)
    else:
      kept.append(i)
  final = []
  for image in truth["images"]:
    final += [i for i in kept if results[i]["image_id"] == image["id"]][:most]
  on_object, losses = 0, []
  for i in final:
    same = [
      a
      for a in truth["annotations"]
      if a["image_id"] == results[i]["image_id"]
      and a["category_id"] == results[i]["category_id"]
      and not a["iscrowd"]
    ]
    fits = [oracles.iou(corners(results[i]), corners(a)) for a in same]
    if fits and max(fits) >= 0.5:
      on_object += 1
      target = same[fits.index(max(fits))]
      better = max([oracles.iou(corners(results[j]), corners(target)) for j in victims.get(i, [])] or [0])
      losses += [better - max(fits)] if better > max(fits) else []
  return len(final), on_object, len(losses), sum(losses) / len(losses)


@pytest.mark.parametrize("seed, nms_iou, most", [(0, 0.5, 100), (1, 0.7, 12), (2, 0.3, 8)])
def test_regret_is_the_slow_version(seed, nms_iou, most):
  truth, results = draw(seed, images=25)
  rng = np.random.default_rng(seed)
  candidates = []
  for r in results * 4:
    x, y, w, h = r["bbox"]
    shift = rng.normal(0, 0.15, 4) * [w, h, w, h]
    score = round(float(rng.uniform()), 2)  # with ties
    candidates.append(r | {"bbox": (np.array([x, y, w, h]) + shift).tolist(), "score": score})
  rng.shuffle(candidates)
  got = nms_regret(truth, as_boxes(candidates), nms_iou=nms_iou, max_detections=most)
  expected = slow_regret(truth, candidates, nms_iou, most)
  assert got[:3] == expected[:3] and got.regretted >= 4
  assert got.mean_loss == pytest.approx(expected[3]) and got.share == got.regretted / got.on_object


def test_suppressing_candidates_gives_what_detect_keeps(tmp_path):
  """Candidates of `detect` through the file, then NMS here: the same boxes as hard NMS on the device."""
  rng = np.random.default_rng(0)
  centre, half = rng.uniform(0, 100, (60, 2)), rng.uniform(8, 30, (60, 2))
  anchors = jnp.float32(np.concatenate([centre - half, centre + half], axis=1))
  run = partial(
    detect,
    jnp.float32(rng.normal(0, 1.5, (2, 60, 2))),
    jnp.float32(rng.normal(0, 0.3, (2, 60, 4))),
    anchors,
    jnp.array([[90, 100]] * 2),
    jnp.ones((2, 2)),
    level_sizes=(60,),
    convention="modern",
    score_threshold=0.3,
  )
  ids = np.array([3, 8])

  def results(detections):
    which = np.asarray(detections.valid)
    boxes, scores, labels = (np.asarray(c)[which] for c in detections[:3])
    return coco.to_results(10 * which.nonzero()[0], boxes, scores, ids[labels])

  hard, every = results(run(max_detections=12)), results(run(max_detections=120, nms="none"))
  assert len(hard) == 24 and len(every) > 60
  overlap.save_candidates(tmp_path / "candidates.npz", every)
  assert [p.name for p in tmp_path.iterdir()] == ["candidates.npz"]
  candidates = overlap.load_candidates(tmp_path / "candidates.npz")
  for read, written in zip(candidates, overlap.as_boxes(every), strict=True):
    np.testing.assert_array_equal(read, written)
  kept, _ = suppress(candidates, max_detections=12)
  assert list(every[kept].rows()) == list(hard.rows())


def test_what_is_refused(tmp_path):
  truth, results = scene([], [(1, [0, 0, 1, 1], 0.5)])
  with pytest.raises(UserError, match=r"detections have image ids .* 77"):
    best_ious(truth, [results[0] | {"image_id": 77}])
  with pytest.raises(UserError, match=r"detections have category ids .* 5"):
    nms_regret(truth, as_boxes([results[0] | {"category_id": 5}]))
  with pytest.raises(UserError, match="No such file"):
    overlap.load_candidates(tmp_path / "none.npz")
  overlap.save_candidates(tmp_path / "cut.npz", coco.Results.of(results))
  (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:300])
  (tmp_path / "empty.npz").touch()
  np.savez(tmp_path / "other.npz", boxes=np.zeros(3))
  np.save(tmp_path / "array.npy", np.zeros(3))
  for name in ("cut.npz", "empty.npz", "other.npz", "array.npy"):
    with pytest.raises(UserError, match=r"holds no candidates .*save_candidates"):
      overlap.load_candidates(tmp_path / name)


def test_boxes_have_exclusive_ends_in_pixels():
  got = as_boxes([{"image_id": 1, "category_id": 2, "bbox": [10, 20, 3, 4], "score": 1}])
  assert isinstance(got, Boxes) and got.box.tolist() == [[10, 20, 13, 24]]
