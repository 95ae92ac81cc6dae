"""Kinds of errors by hand, by an oracle and by hotcoco; which pictures are on the page, and their numbers."""

import base64
import contextlib
import io
import json
from collections import Counter
from dataclasses import replace

import cv2
import hotcoco
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.evaluation.coco import load_ground_truth
from iou_det.report.gallery import COUNTED, make_gallery
from iou_det.report.kinds import KINDS, judge
from tests.report.made import EVERY_KIND, FOUND, OBJECTS, make_runs
from tests.report.oracle import kinds_of_image

PLENTY = 10**7  # bytes


def random_run(seed, crowds=0.0, images=12):
  """Objects, and detections near them or not, in a picture of 100x100."""
  rng = np.random.default_rng(seed)
  objects, found = [], []
  for i in range(images):
    objects.append([])
    for _ in range(rng.integers(0, 6)):
      box = np.array([*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)])
      label = int(rng.integers(3))
      objects[-1].append((*box.tolist(), label, *([True] if rng.random() < crowds else [])))
      for _ in range(rng.integers(0, 4)):
        near = box + rng.normal(0, rng.choice([1, 6, 15]), 4)
        near[2:] = np.maximum(near[2:], 3)
        other = label if rng.random() < 0.7 else int(rng.integers(3))
        found.append((i, *near.tolist(), other, float(rng.random())))
  return make_runs(objects, {"a": found}, classes=("disc", "ring", "star"))[0], objects, found


def number(gallery, run, kind, threshold, label=None):
  """What the page shows in its table."""
  steps = [s for k, s in enumerate(gallery["counts"][run][kind]) if label in (None, k)]
  pairs = [pair for flat in steps for pair in zip(flat[::2], flat[1::2], strict=True)]
  return sum(n for step, n in pairs if (step < threshold) == (kind == "missed"))


def test_every_kind_by_hand():
  (run,) = make_runs([OBJECTS], {"a": EVERY_KIND})
  judged = judge(load_ground_truth(run.truth)[0], run.detections)
  assert [KINDS[k] for k in judged.kind] == [row[6] for row in FOUND]
  assert judged.object.tolist() == [row[7] for row in FOUND]


@pytest.mark.parametrize(
  ("threshold", "missed"),
  [
    (0, 1),  # the one that nothing is on
    (30, 1),  # a score of exactly 0.3 counts
    (31, 2),  # without the one that 0.3 finds
    (61, 3),  # and the one that 0.6 is poorly placed on
    (71, 4),  # and the one that 0.7 takes for another class
    (91, 5),  # all but the crowd
  ],
)
def test_a_threshold_leaves_out_detections_and_what_they_excused(threshold, missed):
  gallery = make_gallery(make_runs([OBJECTS], {"a": EVERY_KIND}), PLENTY)
  assert number(gallery, 0, "missed", threshold) == missed
  shown = Counter(row[6] for row in FOUND if round(100 * row[5]) >= threshold)
  for kind in COUNTED[1:]:
    assert number(gallery, 0, kind, threshold) == shown[kind]
  assert number(gallery, 0, "missed", threshold, label=0) == (threshold > 60) + (threshold > 90)


@pytest.mark.parametrize("crowds", [0.0, 0.3])
@pytest.mark.parametrize("threshold", [0, 35, 80])
def test_kinds_are_those_of_plain_loops_at_every_threshold(crowds, threshold):
  for seed in range(4):
    run, objects, found = random_run(seed, crowds)
    gallery = make_gallery([run], PLENTY)
    expected = Counter()
    for i, those in enumerate(objects):
      shown = [(row[1:5], row[5], row[6]) for row in found if row[0] == i and row[6] >= threshold / 100]
      kinds, missed = kinds_of_image([(o[:4], o[4], len(o) > 5) for o in those], shown)
      expected.update(kinds)
      expected["missed"] += len(missed)
    assert {k: number(gallery, 0, k, threshold) for k in COUNTED} == {k: expected[k] for k in COUNTED}


def test_as_many_are_right_as_pycocotools_counts_and_errors_are_hotcocos():
  for seed in range(3):
    run, _, _ = random_run(seed, images=40)
    truth, _ = load_ground_truth(run.truth)
    rows = list(run.detections.rows())
    gallery = make_gallery([run], PLENTY)
    with contextlib.redirect_stdout(io.StringIO()):
      expected = COCO()
      expected.dataset = truth
      expected.createIndex()
      scorer = COCOeval(expected, expected.loadRes([dict(row) for row in rows]), "bbox")
      scorer.evaluate()
    whole = [e for e in scorer.evalImgs if e and e["aRng"] == [0, 1e10]]
    right = sum(int(((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0].astype(bool)).sum()) for e in whole)
    assert number(gallery, 0, "right", 0) == right > 20
    theirs = hotcoco.COCO(truth)
    tide = hotcoco.COCOeval(theirs, theirs.load_res(rows), "bbox")
    tide.evaluate()
    names = {
      "Loc": "place",
      "Cls": "class",
      "Dupe": "duplicate",
      "Bkg": "false",
      "Both": "both",
      "Miss": "missed",
    }
    assert tide.tide_errors()["counts"] == {k: number(gallery, 0, v, 0) for k, v in names.items()}


def test_an_image_is_described_by_its_objects_and_what_each_run_found():
  (a, b) = make_runs([OBJECTS, ()], {"a": EVERY_KIND, "b": []})
  gallery = make_gallery([a, b], PLENTY)
  assert json.loads(json.dumps(gallery))["runs"] == ["a", "b"] and gallery["total"] == 2
  image, empty = gallery["images"]
  assert (image["id"], image["file"], image["width"], image["height"]) == (10, "0.png", 100, 100)
  assert image["objects"] == [[*o[:4], o[4], int(len(o) > 5)] for o in OBJECTS]
  as_written = [[*r[:4], round(10_000 * r[5]), r[4], KINDS.index(r[6]), r[7]] for r in FOUND]
  assert image["found"] == [as_written, []]
  assert (empty["id"], empty["objects"], empty["found"]) == (11, [], [[], []])


def test_the_score_begins_where_f1_is_best():
  # Of two objects one is found at 0.6; at 0.4 and 0.2 there are false ones: F1 is 2/3 at 0.41 to 0.6.
  objects = [(0, 0, 20, 20, 0), (50, 50, 20, 20, 0)]
  found = [(0, 0, 0, 20, 20, 0, 0.605), (0, 30, 0, 9, 9, 0, 0.405), (0, 30, 30, 9, 9, 0, 0.205)]
  assert make_gallery(make_runs([objects], {"a": found}), PLENTY)["threshold"] == 41


def test_the_worst_come_first_as_many_as_fit():
  # Image i has i false detections; 2 alone has a star, which is found.
  images = [[(80, 80, 20, 20, 1)] if i == 2 else [] for i in range(6)]
  found = [(i, 10 * k, 0, 9, 9, 0, 0.9) for i in range(6) for k in range(i)] + [(2, 80, 80, 20, 20, 1, 0.9)]
  runs = make_runs(images, {"a": found})
  whole = make_gallery(runs, PLENTY)
  ids = lambda gallery: [image["id"] - 10 for image in gallery["images"]]
  assert ids(whole) == [5, 2, 4, 3, 1, 0]
  sizes = [len(json.dumps(image)) for image in whole["images"]]
  rest = len(json.dumps([whole["classes"], whole["counts"]]))  # takes room too
  part = make_gallery(runs, rest + sum(sizes[:3]))
  assert (ids(part), part["total"], part["unshown"]) == ([5, 2, 4], 6, [])
  assert part["counts"] == whole["counts"]  # of all images
  assert ids(make_gallery(runs, rest + sum(sizes[:3]) - 1)) == [5, 2]
  one = make_gallery(runs, rest + sizes[0])
  assert (ids(one), one["unshown"]) == ([5], ["star"])


def test_a_picture_that_cannot_be_read_is_counted(caplog):
  (run,) = make_runs([OBJECTS, OBJECTS, OBJECTS], {"a": EVERY_KIND})
  good = run.source.read

  def read(i):
    if i == 1:
      raise FileNotFoundError(2, "No such file", "1.png")
    return b"no picture" if i == 2 else good(i)

  gallery = make_gallery([replace(run, source=run.source.replace(read=read))], PLENTY)
  assert [image["id"] for image in gallery["images"]] == [10]
  assert (gallery["total"], gallery["unread"]) == (3, 2)
  (said,) = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
  assert said.startswith("2 pictures") and "1.png" in said


def test_large_pictures_are_shrunk_and_their_boxes_stay():
  (run,) = make_runs([[(0, 0, 1000, 500, 0)]], {"a": []}, size=(800, 1600))
  (image,) = make_gallery([run], PLENTY)["images"]
  encoded = base64.b64decode(image["picture"].removeprefix("data:image/webp;base64,"))
  pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  assert pixels.shape == (320, 640, 3) and abs(int(pixels.mean()) - 40) <= 1
  assert (image["width"], image["height"], image["objects"]) == (1600, 800, [[0, 0, 1000, 500, 0, 0]])
