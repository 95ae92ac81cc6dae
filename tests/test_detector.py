"""Detection on a whole split: each image once, the same on any devices, scored as pycocotools does."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.data import open_dataset
from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.parallel import device_mesh, replicated
from iou_det.training.validation import mean_loss, validation_loss
from iou_det.weights.load import load_detector
from tests.same import assert_same_detections


def results_on(detector, source, devices):
  """Detections, and the validation loss."""
  mesh = device_mesh(detector.config.eval.batch_size, devices)
  variables = jax.device_get(detector.variables)
  variables = jax.device_put(variables, replicated(mesh))
  also = validation_loss(detector.config, detector.model, mesh, source)
  moved = dataclasses.replace(detector, mesh=mesh, variables=variables, also=also)
  return list(moved.detect(source).rows()), mean_loss(also.values)


@pytest.mark.parametrize("devices", [2, 8])
def test_all_devices_give_the_same_detections_of_every_image_once_and_loss(reference, devices):
  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val")
  assert len(source) % detector.config.eval.batch_size, "the last batch should have padding rows"
  one, loss = results_on(detector, source, jax.devices()[:1])
  many, same_loss = results_on(detector, source, jax.devices()[:devices])
  assert {r["image_id"] for r in one} == set(source.annotations.image_id.tolist())
  assert_same_detections(one, many)
  assert same_loss == pytest.approx(loss, rel=1e-5) and len(loss) == 3


def test_image_seen_twice_is_noticed(reference, monkeypatch):
  from iou_det import detector as module

  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val")
  batches = module.eval_batches

  def repeated(*args, **kwargs):
    first, *others = list(batches(*args, **kwargs))
    return [first, first, *others[1:]]

  monkeypatch.setattr(module, "eval_batches", repeated)
  with pytest.raises(AssertionError, match="twice or not at all"):
    results_on(detector, source, jax.devices()[:1])


def test_written_files_give_pycocotools_figures(reference, capsys):
  workdir, metrics = reference
  detections = workdir / "eval/val/detections.json"
  detector = load_detector(workdir)
  truth = COCO(f"{detector.config.data.path}/annotations/instances_val.json")
  judge = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
  judge.evaluate()
  judge.accumulate()
  judge.summarize()
  capsys.readouterr()
  names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
  ours = [-1.0 if metrics[name] is None else metrics[name] for name in names]
  np.testing.assert_allclose(ours, judge.stats, atol=1e-9)
  assert metrics["step"] == 8 and metrics["split"] == "val" and metrics["images"] == 13
  assert metrics["detections"] == len(json.loads(detections.read_text()))


def test_other_category_table_is_refused(reference):
  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val")
  with pytest.raises(UserError, match=r"the detector knows the categories \(1: cat; 1 in all\)"):
    dataclasses.replace(detector, categories=(Category(1, "cat"),)).evaluate(source)
  assert dataclasses.asdict(source.categories[0])["id"] == 1


def test_data_with_fewer_categories_are_scored_by_these(reference, caplog):
  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val")
  a, three = source.annotations, source.categories[:3]
  keep = a.label < 3
  first = np.cumsum([0, *(keep[a.rows(i)].sum() for i in range(len(a)))])
  columns = {k: getattr(a, k)[keep] for k in ("bbox", "label", "crowd", "area", "annotation_id")}
  fewer = dataclasses.replace(
    source, categories=three, annotations=dataclasses.replace(a, first=first, **columns)
  )
  with caplog.at_level("INFO"):
    metrics, results = detector.evaluate(fewer)
  every = list(detector.detect(source).rows())
  assert_same_detections(
    list(results.rows()), [r for r in every if r["category_id"] in {c.id for c in three}]
  )
  assert len(results) < len(every)
  assert f"{len(every) - len(results)} of {len(every)} detections are of 1 classes that" in caplog.text
  assert list(metrics["AP_per_class"]) == [c.name for c in three]


def test_categories_that_have_only_names_are_those_of_these_names(reference):
  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val")
  # As a folder would have it whose classes begin at another letter: other ids, other places.
  order = [2, 0, 3, 1]
  names = [source.categories[k].name for k in order]
  other = tuple(Category(i, name) for i, name in enumerate(names, 50))
  label = np.argsort(order)[source.annotations.label].astype(np.int32)
  columns = dataclasses.replace(source.annotations, label=label)
  renamed = dataclasses.replace(source, categories=other, annotations=columns, own_ids=False)
  assert detector.evaluate(renamed).metrics == detector.evaluate(source).metrics
  with pytest.raises(UserError, match="the detector knows the categories"):
    detector.evaluate(dataclasses.replace(renamed, own_ids=True))


def test_a_bad_image_is_named_and_costs_the_others_nothing_in_a_stream(reference, tmp_path):
  detector = load_detector(reference[0])
  good = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
  bad = tmp_path / "bad.png"
  bad.write_bytes(b"\x89PNG\r\n\x1a\n")
  with pytest.raises(UserError, match=r"bad\.png: truncated PNG"):
    detector([good, bad, good])
  with pytest.raises(UserError, match=r"gone\.png: there is no such file"):
    detector(tmp_path / "gone.png")
  images = [bad, good, good[:, ::-1], bad, bad, good, bad]
  seen = list(detector.stream(images, len(images)))
  assert [isinstance(one, UserError) for one in seen] == [True, False, False, True, True, False, True]
  expected = detector([good, good[:, ::-1]])
  for (pixels, found), image, same in zip(
    (seen[1], seen[2], seen[5]),
    (good, good[:, ::-1], good),
    (expected[0], expected[1], expected[0]),
    strict=True,
  ):
    np.testing.assert_array_equal(pixels, image)
    np.testing.assert_allclose(found.scores, same.scores, atol=1e-5)
