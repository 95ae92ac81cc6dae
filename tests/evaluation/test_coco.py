"""COCO scoring against an independent run of pycocotools on the written files, and known answers."""

import contextlib
import copy
import io
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.data.coco import to_coco
from iou_det.errors import UserError
from iou_det.evaluation import coco
from tests.data.coco_files import open_pair

NAMES = {3: "cat", 7: "dog", 8: "bird", 40: "never there"}
SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(truth, results, **options):
  return coco.evaluate(truth, coco.Results.of(results), **options)


def draw(seed, images=12, max_side=200.0):
  """Ground truth with crowds, mask areas, images without boxes; detections near it, doubled and astray."""
  rng = np.random.default_rng(seed)
  truth = {
    "images": [
      {"id": 10 * i + 5, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(images)
    ],
    "annotations": [],
    "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
  }
  results = []
  for image in truth["images"]:
    for _ in range(rng.integers(0, 8) if image["id"] % 20 == 5 else 0):
      x, y = rng.uniform(0, 300, 2).tolist()
      w, h = rng.uniform(4, max_side, 2).tolist()
      category = int(rng.choice([3, 7, 8]))
      truth["annotations"].append(
        {
          "id": 1000 + 3 * len(truth["annotations"]),
          "image_id": image["id"],
          "category_id": category,
          "bbox": [x, y, w, h],
          "area": w * h * rng.uniform(0.5, 1),
          "iscrowd": int(rng.uniform() < 0.15),
        }
      )
      for _ in range(rng.integers(0, 4)):
        shift = rng.normal(0, 0.06, 4) * [w, h, w, h]
        results.append(
          {
            "image_id": image["id"],
            "category_id": int(rng.choice([category, 7])),
            "bbox": (np.array([x, y, w, h]) + shift).tolist(),
            "score": float(rng.uniform()),
          }
        )
    results += [
      {"image_id": image["id"], "category_id": 40, "bbox": [1.0, 2.0, 30.0, 40.0], "score": float(s)}
      for s in rng.uniform(size=2)
    ]
  return truth, results


def pycocotools(folder, truth, results, image_ids=None):
  """The 12 figures and the precision table, by way of files and loadRes."""
  (folder / "truth.json").write_text(json.dumps(truth))
  (folder / "detections.json").write_text(json.dumps(results))
  with contextlib.redirect_stdout(io.StringIO()):
    expected = COCO(str(folder / "truth.json"))
    scorer = COCOeval(expected, expected.loadRes(str(folder / "detections.json")), "bbox")
    if image_ids:
      scorer.params.imgIds = image_ids
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
  return scorer.stats, scorer.eval["precision"]


def perfect(truth):
  return [
    {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
    for a in truth["annotations"]
  ]


@pytest.mark.parametrize(
  "seed, image_ids, max_side", [(0, None, 200), (1, [5, 25, 35, 65], 250), (2, None, 60)]
)
def test_figures_are_pycocotools(tmp_path, seed, image_ids, max_side):
  truth, results = draw(seed, max_side=max_side)
  stats, precision = pycocotools(tmp_path, truth, results, image_ids)
  metrics = evaluate(tmp_path / "truth.json", results, image_ids=image_ids)
  got = [metrics[name] for name in SIZES]
  np.testing.assert_array_equal([-1 if v is None else v for v in got], stats)
  assert (metrics["APl"] is None) == (max_side == 60)  # no large boxes: absent, not 0
  assert 0.1 < metrics["AP"] < 0.95
  assert list(metrics["AP_per_iou"]) == [f"{0.5 + 0.05 * i:.2f}" for i in range(10)]
  for i, value in enumerate(metrics["AP_per_iou"].values()):
    at = precision[i, :, :, 0, 2]
    assert value == np.mean(at[at > -1])
  assert list(metrics["AP_per_class"]) == list(NAMES.values())
  for k, value in enumerate(metrics["AP_per_class"].values()):
    of = precision[:, :, k, 0, 2]
    assert value == (np.mean(of) if of.max() > -1 else None)
  chosen = image_ids or [image["id"] for image in truth["images"]]
  assert metrics["images"] == len(chosen)
  assert metrics["detections"] == sum(r["image_id"] in chosen for r in results)
  assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
  "empty, image_ids, add",
  [(False, None, 0), (False, [5, 15, 45], 0), (True, None, 0), (False, None, 2**53 + 1)],
)
def test_hotcoco_gives_the_same_figures(empty, image_ids, add):
  truth, results = draw(3)
  results = [] if empty else results
  for row in results + truth["annotations"]:  # with `add`, as float64 many ids would be the same
    row["image_id"] = row["image_id"] // 10 + add if add else row["image_id"]
  for row in truth["images"] if add else []:
    row["id"] = row["id"] // 10 + add
  ours = evaluate(truth, results, image_ids=image_ids)
  fast = evaluate(truth, results, image_ids=image_ids, backend="hotcoco")
  assert fast.keys() == ours.keys()
  for name in (*SIZES, "images", "detections"):
    assert fast[name] == pytest.approx(ours[name], abs=1e-9)
  for name in ("AP_per_iou", "AP_per_class"):
    assert fast[name] == pytest.approx(ours[name], abs=1e-9)


def test_a_source_scores_as_its_annotation_file(tmp_path):
  """Ids, float areas and crowd flags survive, so the figures are those of the original file."""
  truth, results = draw(4)
  truth["categories"][2]["name"] = "cow"  # a source's names differ
  for image in truth["images"]:
    (tmp_path / image["file_name"]).write_bytes(b"not read")
  stats, _ = pycocotools(tmp_path, truth, results)
  source = open_pair(tmp_path, tmp_path / "truth.json")
  content = to_coco(source.categories, source.annotations)
  assert content["images"] == truth["images"] and content["categories"] == truth["categories"]
  assert content["annotations"] == truth["annotations"]
  metrics = evaluate(content, results)
  np.testing.assert_array_equal([metrics[name] for name in SIZES], stats)


@pytest.mark.parametrize("number", [0, 1, 4, 5, 8, 13])
def test_results_are_written_as_json_writes_the_list_of_dicts(monkeypatch, number):
  """In pieces of four, from float32 as the detector gives them."""
  monkeypatch.setattr(coco, "CHUNK", 4)
  rng = np.random.default_rng(number)
  boxes = np.float32(rng.normal(0, 300, (number, 4)))
  scores = np.float32(rng.uniform(0, 1, number) ** 9)  # down to exponents
  images, categories = rng.integers(0, 2**60, number), rng.integers(1, 91, number)
  written = b"".join(coco.to_results(images, boxes, scores, categories).as_json())
  dicts = []
  for i, (x1, y1, x2, y2) in enumerate(boxes.astype(float).tolist()):
    box = [x1, y1, x2 - x1, y2 - y1]
    dicts.append(
      {"image_id": int(images[i]), "category_id": int(categories[i]), "bbox": box, "score": float(scores[i])}
    )
  assert written == json.dumps(dicts).encode() + b"\n"
  again = coco.Results.of(json.loads(written))
  assert list(again.rows()) == dicts and len(again) == number
  parts = coco.Results.join([again[:3], again[3:]])
  assert list(parts.rows()) == dicts
  assert list(again[again.score > 0.5].rows()) == [row for row in dicts if row["score"] > 0.5]


def test_hotcoco_is_taken_where_it_is_installed(monkeypatch):
  assert coco.choose_backend("auto") == coco.choose_backend("hotcoco") == "hotcoco"
  monkeypatch.setitem(sys.modules, "hotcoco", None)
  assert coco.choose_backend("auto") == coco.choose_backend("pycocotools") == "pycocotools"
  with pytest.raises(
    UserError, match=r"'hotcoco' is not installed; pip install .*fast-eval.*or use pycocotools"
  ):
    evaluate(*draw(0), backend="hotcoco")


def test_results_have_original_ids_and_unrounded_pixels():
  boxes = np.float32([[0.1, 1.0, 10.7, 20.0], [5.0, 5.0, 6.0, 8.0]])
  ids = np.array([42, 42]), np.array([7, 3])
  results = list(coco.to_results(ids[0], boxes, np.float32([0.9, 0.1]), ids[1]).rows())
  assert [(r["image_id"], r["category_id"]) for r in results] == [(42, 7), (42, 3)]
  np.testing.assert_array_equal([r["score"] for r in results], np.float32([0.9, 0.1]))
  first = np.float64(boxes[0])
  assert results[0]["bbox"] == [first[0], 1.0, first[2] - first[0], 19.0]
  assert results[1]["bbox"] == [5.0, 5.0, 1.0, 3.0]
  assert json.loads(json.dumps(results)) == results
  none = np.zeros(0, np.int32)
  assert len(coco.to_results(none, boxes[:0], np.zeros(0), none)) == 0


def test_perfect_detections_score_one_and_crowds_do_not_count(capsys):
  truth, _ = draw(5)
  with_crowds = evaluate(truth, perfect(truth))
  assert with_crowds["AP"] == pytest.approx(1.0) and with_crowds["AR100"] == 1.0
  objects = copy.deepcopy(truth)
  objects["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
  assert len(objects["annotations"]) < len(truth["annotations"])
  on_crowds = [r for r in perfect(truth) if r not in perfect(objects)]
  astray = evaluate(objects, [r | {"score": 0.9} for r in on_crowds] + perfect(objects))
  assert astray["AP"] < 0.99  # there they are false positives
  assert capsys.readouterr().out == ""


def test_classes_of_one_name_are_told_apart():
  truth, results = draw(0)
  truth["categories"][2]["name"] = "cat"
  assert list(evaluate(truth, results)["AP_per_class"]) == ["cat (id 3)", "dog", "cat (id 8)", "never there"]


def test_no_detections_and_no_ground_truth():
  truth, results = draw(6)
  nothing = evaluate(truth, [])
  assert (nothing["AP"], nothing["AR100"], nothing["detections"]) == (0.0, 0.0, 0)
  assert nothing["AP_per_class"] == {"cat": 0.0, "dog": 0.0, "bird": 0.0, "never there": None}
  no_boxes = evaluate(truth | {"annotations": []}, results)
  assert all(no_boxes[name] is None for name in SIZES)
  assert no_boxes["images"] == 12 and no_boxes["detections"] == len(results)
  assert no_boxes["AP_per_iou"]["0.95"] is None


def test_annotation_id_zero_is_a_box_like_any_other():
  """pycocotools itself would count that box as missed."""
  truth, _ = draw(5)
  for i, a in enumerate(truth["annotations"]):
    a["id"] = i
  assert evaluate(truth, perfect(truth))["AR100"] == 1.0
  for a in truth["annotations"]:
    a["id"] = 1
  assert evaluate(truth, perfect(truth))["AR100"] == 1.0


def test_inputs_are_not_changed():
  truth, results = draw(7)
  before = copy.deepcopy((truth, results))
  evaluate(truth, results)
  assert (truth, results) == before


def test_table_has_the_lines_of_coco(tmp_path):
  truth, results = draw(2, max_side=60)
  pycocotools(tmp_path, truth, results)
  metrics = evaluate(truth, results)
  text = coco.table(metrics)
  lines = text.splitlines()
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    expected = COCO(str(tmp_path / "truth.json"))
    scorer = COCOeval(expected, expected.loadRes(str(tmp_path / "detections.json")), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
  usual = [line for line in said.getvalue().splitlines() if " @[ IoU=" in line]
  assert len(usual) == 12
  assert [line.replace("    -", "-1.000") if line.endswith("-") else line for line in lines[:12]] == usual
  assert " ".join(metrics["AP_per_iou"]) in " ".join(text.split())
  assert f"never there  {'-':>5}" in text and f"dog          {metrics['AP_per_class']['dog']:.3f}" in text
  assert lines[-1] == f" {len(results)} detections in 12 images"


def test_table_of_many_classes_names_each_once():
  metrics = evaluate(*draw(0)) | {"AP_per_class": {f"class {i:02d}": i / 80 for i in range(80)}}
  text = coco.table(metrics)
  assert max(map(len, text.splitlines())) < 120 and len(text.splitlines()) < 45
  assert all(text.count(f"class {i:02d}  {i / 80:.3f}") == 1 for i in range(80))


@pytest.mark.parametrize(
  "content, message",
  [
    (None, "annotation file .* does not exist"),
    ("{", "is not JSON"),
    ("[]", "has no list 'images'; a COCO file is one object with the lists images, annotations and"),
    ('{"images": [{}], "categories": [{}]}', "has no list 'annotations'"),
  ],
)
def test_a_wrong_annotation_file_is_one_line(tmp_path, content, message):
  path = tmp_path / "truth.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=message) as error:
    evaluate(path, [])
  assert "\n" not in str(error.value)


def test_bad_records_of_an_annotation_file_are_named(tmp_path):
  truth, results = draw(0)
  truth["annotations"][0]["bbox"][2] = -1
  del truth["images"][1]["id"], truth["annotations"][1]["category_id"]
  (tmp_path / "truth.json").write_text(json.dumps(truth))
  with pytest.raises(UserError) as error:
    evaluate(tmp_path / "truth.json", results)
  for words in (
    "3 bad records of ",
    "image number 1: has no 'id'",
    "annotation id 1000 (image id 5): 'bbox' is ",
    "annotation id 1003 (image id 5): has no 'category_id'",
  ):
    assert words in str(error.value)


@pytest.mark.parametrize("ids", ["zero", "none", "some", "twice"])
def test_annotation_ids_of_a_file_do_not_matter(tmp_path, caplog, ids):
  truth, results = draw(8)
  rng = np.random.default_rng(0)
  rng.shuffle(truth["annotations"])  # not image by image
  expected = evaluate(truth, results)
  for i, a in enumerate(truth["annotations"]):
    a["id"] = i // 2 if ids == "twice" else i
    if ids == "none" or (ids == "some" and i % 2):
      del a["id"]
  (tmp_path / "truth.json").write_text(json.dumps(truth))
  caplog.set_level("INFO")
  assert evaluate(tmp_path / "truth.json", results) == expected == evaluate(truth, results)
  renumbered = "truth.json: annotation ids that are missing, 0 or repeated were renumbered"
  assert caplog.text.count(renumbered) == (ids != "none")
  assert ("annotations without 'id' (their place taken): " in caplog.text) == (ids in ("none", "some"))


def test_detections_of_other_images_or_classes_are_errors():
  truth, results = draw(0)
  stray = {"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5}
  with pytest.raises(UserError, match=r"image ids that the ground truth does not have: 99 \(1 in all\)"):
    evaluate(truth, [*results, stray])
  with pytest.raises(UserError, match=r"category ids that the ground truth does not have: 4 \(1 in all\)"):
    evaluate(truth, [stray | {"image_id": 5, "category_id": 4}])
  with pytest.raises(UserError, match=r"image_ids asks for image ids that .*: 1, 2"):
    evaluate(truth, results, image_ids=[5, 1, 2])
  with pytest.raises(UserError, match="'fast' is not known; use one of pycocotools, hotcoco"):
    evaluate(truth, results, backend="fast")


@pytest.mark.real_data
def test_bccd_annotations_score_perfectly_against_themselves(real_data):
  """Zero-area boxes can be found by nobody: those alone are missed."""
  truth = json.loads((real_data / "bccd" / "annotations" / "instances_val.json").read_text())
  empty = [a for a in truth["annotations"] if a["bbox"][2] * a["bbox"][3] == 0]
  metrics = evaluate(truth, perfect(truth))
  others = [a for a in truth["annotations"] if a not in empty]
  whole = evaluate(truth | {"annotations": others}, perfect(truth))
  assert metrics["AR100"] < 1.0 and whole["AR100"] == 1.0 and empty
