"""What leaves the run again: candidates, detections without a threshold, results for COCO's server."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from iou_det.errors import UserError
from iou_det.evaluation.bootstrap import score_detections
from iou_det.evaluation.coco import evaluate
from iou_det.evaluation.overlap import best_ious, load_candidates, suppress
from iou_det.evaluation.results import Results, read_data
from iou_det.paper import results as paper_results


@pytest.fixture(scope="module")
def run(tmp_path_factory, reference):
  """A copy of the tiny run."""
  workdir = tmp_path_factory.mktemp("copy") / "run"
  shutil.copytree(reference[0], workdir)
  return Results.read(workdir)


def test_ground_truth_is_read_once_and_stays_as_it_is(run, shapes_folder):
  again = Results.read(run.workdir)
  assert again.truth is run.truth
  found = run.detections()
  score_detections(run.truth, found), best_ious(run.truth, found), evaluate(run.truth, found)
  file = json.loads((shapes_folder / "annotations" / "instances_val.json").read_text())
  assert {a["id"]: a["bbox"] for a in run.truth["annotations"]} == {
    a["id"]: a["bbox"] for a in file["annotations"]
  }
  read_data.cache_clear()
  assert Results.read(run.workdir).truth == again.truth


def test_candidates_become_the_runs_detections_by_nms(run):
  paper_results.find_candidates(run.workdir)
  found = load_candidates(run.candidates)
  kept, _ = suppress(found, nms_iou=run.config.eval.nms_iou, max_detections=run.config.eval.max_detections)
  ours = sorted(zip(found.image_id[kept], found.score[kept], strict=True))
  scored = sorted((r["image_id"], r["score"]) for r in run.detections().rows())
  assert len(kept) > len(ours) == len(scored)
  np.testing.assert_allclose(np.array(ours), np.array(scored), rtol=1e-5)
  before = (run.folder / "candidates.npz").stat().st_mtime
  paper_results.find_candidates(run.workdir)
  assert (run.folder / "candidates.npz").stat().st_mtime == before  # not made again


def test_a_threshold_of_0_scores_the_same_checkpoint_beside_the_runs_own_figures(
  run, shapes_folder, monkeypatch
):
  own, used = (run.folder / "metrics.json").read_text(), []
  load = paper_results.load_detector
  monkeypatch.setattr(paper_results, "load_detector", lambda *a: used.append(load(*a)) or used[0])
  paper_results.score_without_threshold(run.workdir)
  paper_results.score_without_threshold(run.workdir)  # done before
  assert len(used) == 1 and used[0].config.eval.score_threshold == 0.0 < run.config.eval.score_threshold
  every = Results.read(run.workdir, paper_results.NO_THRESHOLD)
  assert every.folder.name == "val_threshold0" and every.metrics["step"] == run.metrics["step"]
  truth = json.loads((shapes_folder / "annotations" / "instances_val.json").read_text())
  assert evaluate(truth, every.detections())["AP"] == pytest.approx(every.metrics["AP"], abs=1e-9)
  scores = lambda results: sorted((row["score"] for row in results.detections().rows()), reverse=True)
  assert scores(every)[: len(scores(run))] == pytest.approx(scores(run), abs=1e-6)
  assert (run.folder / "metrics.json").read_text() == own


def test_test_dev_results_are_named_as_the_server_wants(run, shapes_folder, tmp_path):
  root = tmp_path / "coco"
  (root / "annotations").mkdir(parents=True)
  with pytest.raises(UserError, match="image_info_test-dev2017"):
    paper_results.test_dev(run.workdir, root, "method", tmp_path)
  truth = json.loads((shapes_folder / "annotations" / "instances_val.json").read_text())
  listed = {"images": truth["images"][:3], "categories": truth["categories"]}
  (root / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(listed))
  shutil.copytree(shapes_folder / "val", root / "test2017")
  path = paper_results.test_dev(run.workdir, root, "method", tmp_path / "out")
  assert path.name == "detections_test-dev2017_method_results.zip"
  with zipfile.ZipFile(path) as file:
    assert file.namelist() == ["detections_test-dev2017_method_results.json"]
    results = json.loads(file.read(file.namelist()[0]))
  ids = {image["id"] for image in listed["images"]}
  assert {r["image_id"] for r in results} == ids
  expected = [r for r in run.detections().rows() if r["image_id"] in ids]
  assert len(results) == len(expected)
  key = lambda r: (r["image_id"], -r["score"], r["bbox"])
  for ours, theirs in zip(sorted(results, key=key), sorted(expected, key=key), strict=True):
    assert ours["category_id"] == theirs["category_id"]
    np.testing.assert_allclose(ours["bbox"], theirs["bbox"], rtol=1e-4, atol=1e-3)
  (root / "test2017" / truth["images"][1]["file_name"]).unlink()
  made = path.stat().st_mtime_ns
  assert paper_results.test_dev(run.workdir, root, "method", tmp_path / "out") == path
  assert path.stat().st_mtime_ns == made  # newer than the scores: not made again
  with pytest.raises(UserError, match=r"1 images of .* are missing"):
    paper_results.test_dev(run.workdir, root, "method", tmp_path)
