"""The bootstrap against pycocotools: run as it is, and on images that are copied under new ids."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.errors import UserError
from iou_det.evaluation import bootstrap, coco
from iou_det.evaluation.bootstrap import bootstrap_ap, interval, weighted_ap


def draw(seed, images=12, classes=(3, 7, 40)):
  """Ground truth with crowds, images without boxes, a class without objects; detections near and astray."""
  rng = np.random.default_rng(seed)
  truth = {
    "info": {},
    "images": [{"id": 3 * i + 2, "height": 480, "width": 640} for i in reversed(range(images))],
    "annotations": [],
    "categories": [{"id": i, "name": str(i)} for i in (*classes, 50)],
  }
  results = []
  for image in truth["images"]:
    for _ in range(int(rng.integers(0, 8))):
      box = np.array([*rng.uniform(0, 300, 2), *rng.uniform(20, 200, 2)])
      category = int(rng.choice(classes))
      truth["annotations"].append(
        {
          "id": 1 + len(truth["annotations"]),
          "image_id": image["id"],
          "category_id": category,
          "bbox": box.tolist(),
          "area": float(box[2] * box[3]),
          "iscrowd": int(rng.uniform() < 0.2),
        }
      )
      for _ in range(int(rng.integers(0, 4))):
        near = box + rng.normal(0, 0.08, 4) * box[[2, 3, 2, 3]]
        results.append(
          {
            "image_id": image["id"],
            "category_id": int(rng.choice([category, 50])),
            "bbox": near.tolist(),
            "score": float(rng.uniform()),
          }
        )
  return truth, results


def score_detections(truth, results):
  return bootstrap.score_detections(truth, coco.Results.of(results))


def pycocotools(truth, results):
  """AP at each IoU, mean over the classes with objects; -1 without any."""
  truth, results = copy.deepcopy((truth, results))
  with contextlib.redirect_stdout(io.StringIO()):
    expected = COCO()
    expected.dataset = truth
    expected.createIndex()
    scorer = COCOeval(expected, expected.loadRes(results) if results else COCO(), "bbox")
    scorer.evaluate()
    scorer.accumulate()
  at_100 = scorer.eval["precision"][:, :, :, 0, 2]
  return [np.mean(row[row > -1]) if (row > -1).any() else -1 for row in at_100]


def copied(truth, results, weights):
  """Image number i of the images by id, physically there weights[i] times, copies beside each other."""
  images, annotations, detections = [], [], []
  for image, weight in zip(sorted(truth["images"], key=lambda i: i["id"]), weights, strict=True):
    for _ in range(weight):
      new = {"image_id": len(images) + 1}
      images.append(image | {"id": new["image_id"]})
      mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
      annotations += [a | new | {"id": 1 + len(annotations) + i} for i, a in enumerate(mine)]
      detections += [r | new for r in results if r["image_id"] == image["id"]]
  return truth | {"images": images, "annotations": annotations}, detections


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_one_are_pycocotools(seed):
  truth, results = draw(seed)
  before = copy.deepcopy((truth, results))
  scored = score_detections(truth, results)
  assert (truth, results) == before
  assert scored.ignored.any() and scored.correct.any() and not (scored.ignored & scored.correct).any()
  ap = weighted_ap(scored, np.ones((1, 12), int))[0]
  np.testing.assert_allclose(ap, pycocotools(truth, results), rtol=0, atol=1e-9)
  assert ap[0] > 0.2


@pytest.mark.parametrize(
  "first, step",
  [(0, 1), (-1, -1), (-5, 1), (2**53, 1), (2**64, 1), (10**400, 1), (7, 0)],
  ids=["from 0", "negative", "from -5", "from 2^53", "from 2^64", "from 10^400", "all 7"],
)
def test_annotation_ids_do_not_matter(first, step):
  """Negative, 0, beyond what float64 tells apart or holds, all the same."""
  truth, results = draw(1)
  other = copy.deepcopy(truth)
  for i, a in enumerate(other["annotations"]):
    a["id"] = first + step * i
  for a, b in zip(score_detections(other, results), score_detections(truth, results), strict=True):
    np.testing.assert_array_equal(a, b)
  for backend in coco.BACKENDS:
    expected = coco.evaluate(truth, coco.Results.of(results), backend=backend)
    assert expected["AP"] > 0.1
    assert coco.evaluate(other, coco.Results.of(results), backend=backend) == expected


def test_equal_scores_in_different_images_are_sorted_as_pycocotools_does():
  truth, results = draw(4, images=20)
  for r in results:
    r["score"] = round(r["score"], 1)
  ap = weighted_ap(score_detections(truth, results), np.ones((1, 20), int))[0]
  np.testing.assert_allclose(ap, pycocotools(truth, results), rtol=0, atol=1e-9)


@pytest.mark.parametrize("block", [1, 50, bootstrap.BLOCK])
def test_a_resample_is_pycocotools_on_copied_images(monkeypatch, block):
  monkeypatch.setattr(bootstrap, "BLOCK", block)
  truth, results = draw(5)
  rng = np.random.default_rng(0)
  weights = np.stack([np.bincount(rng.integers(12, size=12), minlength=12) for _ in range(8)])
  got = weighted_ap(score_detections(truth, results), weights)
  for row, weight in zip(got, weights, strict=True):
    np.testing.assert_allclose(row, pycocotools(*copied(truth, results, weight)), rtol=0, atol=1e-9)
  assert len(np.unique(got[:, 0])) == 8


def test_at_most_100_detections_of_a_class_and_image_count():
  """The 101st is the one that fits, so there is no true positive."""
  truth, _ = draw(6)
  truth["annotations"] = [truth["annotations"][0] | {"iscrowd": 0}]
  ours = {k: truth["annotations"][0][k] for k in ("image_id", "category_id", "bbox")}
  astray = [ours | {"bbox": [600.0, 400.0, 9.0, 9.0], "score": 0.5 + i / 1000} for i in range(100)]
  scored = score_detections(truth, [ours | {"score": 0.1}, *astray])
  assert len(scored.score) == 100 and not scored.correct.any()
  scored = score_detections(truth, [ours | {"score": 0.1}, *astray[:99]])
  np.testing.assert_allclose(weighted_ap(scored, np.ones((1, 12), int)), 0.01)


def test_bootstrap_is_paired_deterministic_and_covers_the_estimate():
  truth, results = draw(7, images=30)
  worse = [r | {"bbox": [r["bbox"][0] + 8, *r["bbox"][1:]]} for r in results]
  runs = [score_detections(truth, r) for r in (results, worse, results)]
  ap = bootstrap_ap(runs, samples=200, seed=3)
  assert ap.shape == (3, 200, 10)
  np.testing.assert_array_equal(ap[0], ap[2])  # the same images, so nothing but the run makes a difference
  np.testing.assert_array_equal(bootstrap_ap(runs[:1], samples=40, seed=3)[0], ap[0, :40])
  assert not np.array_equal(bootstrap_ap(runs[:1], samples=40, seed=4)[0], ap[0, :40])
  point = weighted_ap(runs[0], np.ones((1, 30), int))[0].mean()
  low, high = interval(ap[0].mean(axis=-1))
  assert low < point < high
  paired, alone = ap[0] - ap[1], ap[0] - ap[1, ::-1]
  assert paired.mean(axis=-1).std() < 0.7 * alone.mean(axis=-1).std()


def test_draws_are_with_replacement_of_as_many_images(monkeypatch):
  truth, results = draw(8, images=9)
  seen = []

  def record(scored, weights):
    seen.append(weights)
    return np.zeros((len(weights), 10))

  monkeypatch.setattr(bootstrap, "weighted_ap", record)
  bootstrap_ap([score_detections(truth, results)] * 2, samples=3000)
  np.testing.assert_array_equal(seen[0], seen[1])
  assert (seen[0].sum(axis=1) == 9).all()
  np.testing.assert_allclose(seen[0].mean(axis=0), 1.0, atol=0.08)
  np.testing.assert_allclose(seen[0].var(axis=0), 8 / 9, atol=0.1)  # binomial(9, 1/9)


def test_nothing_detected_and_resamples_without_objects():
  truth, results = draw(9, images=3)
  none = score_detections(truth, [])
  assert none.start.tolist() == [0] * 5 and none.correct.shape == (10, 0)
  np.testing.assert_array_equal(weighted_ap(none, np.ones((2, 3), int)), 0)
  truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] == 5]
  assert truth["annotations"]
  ap = bootstrap_ap([score_detections(truth, results)], samples=50)[0]
  empty = np.isnan(ap).all(axis=1)
  assert 0 < empty.sum() < 50 and np.isfinite(ap[~empty]).all()
  with pytest.raises(UserError, match=f"{empty.sum()} of 50 resamples have no AP"):
    interval(ap.mean(axis=1))


def test_interval_is_the_percentiles():
  assert interval(np.random.default_rng(0).permutation(1001) / 1.0) == pytest.approx((25, 975))
  assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
  for wrong in (0.0, 1.0, 95.0):
    with pytest.raises(UserError, match="between 0 and 1"):
      interval(np.arange(3.0), wrong)
  with pytest.raises(UserError, match="0 of 0"):
    interval(np.zeros(0))


def test_what_is_refused():
  truth, results = draw(10)
  run = score_detections(truth, results)
  fewer = truth | {"images": truth["images"][1:]}
  gone = truth["images"][0]["id"]
  fewer["annotations"] = [a for a in truth["annotations"] if a["image_id"] != gone]
  other = score_detections(fewer, [r for r in results if r["image_id"] != gone])
  with pytest.raises(UserError, match=r"run 3 was scored on other images than run 1 .11 images"):
    bootstrap_ap([run, run, other])
  objects = [a for a in truth["annotations"] if not a["iscrowd"]]
  one_less = score_detections(truth | {"annotations": objects[1:]}, results)
  with pytest.raises(UserError, match="run 2 was scored on other objects"):
    bootstrap_ap([run, one_less])
  with pytest.raises(UserError, match="no objects"):
    bootstrap_ap([score_detections(truth | {"annotations": []}, results)])
  with pytest.raises(UserError, match="samples=0"):
    bootstrap_ap([run], samples=0)
  with pytest.raises(UserError, match="1 or more runs"):
    bootstrap_ap([])
  with pytest.raises(UserError, match=r"detections have image ids .* 999"):
    score_detections(truth, [results[0] | {"image_id": 999}])
