"""Runs as a page needs them, what is refused, and the command on a trained run."""

import json
import shutil

import pytest

from iou_det.errors import UserError
from iou_det.evaluation.results import read_data
from iou_det.report.runs import load_runs, short_names
from tests.command import iou_det


@pytest.fixture
def copy_of(tmp_path, reference):
  """A copy of what a page needs of the tiny run, without its checkpoints, under a name."""

  def copy(name):
    workdir = tmp_path / name
    shutil.copytree(reference[0], workdir, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    return workdir

  return copy


def edit(path, change):
  """Changes a JSON file, and takes its seals away."""
  content = json.loads(path.read_text())
  if isinstance(content, dict):
    content.pop("crc32", None)
    content.pop("detections_crc32", None)
  path.write_text(json.dumps(change(content)))


def test_a_run_has_what_it_was_scored_on(reference, shapes_folder, copy_of):
  a, b = load_runs([str(reference[0]), str(copy_of("deep/again"))])
  assert (a.name, b.name) == (reference[0].name, "again") and a.split == "val"
  assert a.source is b.source and a.truth is b.truth
  file = json.loads((shapes_folder / "annotations" / "instances_val.json").read_text())
  assert [c.id for c in a.categories] == [c["id"] for c in file["categories"]]
  assert sorted(a.source.annotations.image_id) == sorted(i["id"] for i in file["images"])
  assert len(a.detections) == reference[1]["detections"] == a.metrics["detections"]
  assert any("val/AP" in row for row in a.rows)


def test_names_tell_runs_apart_with_the_fewest_parts():
  assert short_names(["/x/a"]) == ["a"]
  assert short_names(["/x/a/seed0", "/x/b/seed0/"]) == ["a/seed0", "b/seed0"]
  assert short_names(["/a", "/x/a"]) == ["/a", "x/a"]
  with pytest.raises(UserError, match="names /x/a twice"):
    short_names(["/x/a", "/x/b", "/x/a"])


def test_what_cannot_be_shown_is_refused_with_what_to_do(tmp_path, copy_of, shapes_folder):
  with pytest.raises(UserError, match=r"no workdir given; --workdirs=A,B"):
    load_runs([])
  with pytest.raises(UserError, match=r"nowhere is not a folder; --workdirs takes folders"):
    load_runs([str(tmp_path / "nowhere")])
  with pytest.raises(UserError, match=r"is not a training run"):
    load_runs([str(shapes_folder)])
  run = copy_of("run")
  with pytest.raises(UserError, match=rf"was not scored .*`iou-det eval --workdir={run} --split=train`"):
    load_runs([str(run)], "train")
  (run / "eval" / "val" / "detections.json").unlink()
  with pytest.raises(UserError, match=rf"detections.json is missing.*--workdir={run}` first"):
    load_runs([str(run)])


def test_detections_of_other_data_are_refused(copy_of):
  run = copy_of("run")
  folder = run / "eval" / "val"
  edit(folder / "metrics.json", lambda m: m)  # an older version's, without the checksum of the detections
  kept = (folder / "detections.json").read_text()
  edit(folder / "detections.json", lambda rows: [rows[0] | {"image_id": 987654}, *rows[1:]])
  with pytest.raises(UserError, match=r"detections have image ids .* does not have: 987654"):
    load_runs([str(run)])
  edit(folder / "detections.json", lambda rows: [{"image_id": 1}])
  with pytest.raises(
    UserError, match=r"detections\.json holds no detections in COCO's format .*iou-det eval"
  ):
    load_runs([str(run)])
  (folder / "detections.json").write_text(kept)
  edit(folder / "metrics.json", lambda m: m | {"images": 12})
  with pytest.raises(UserError, match=r"was scored on 12 images, .* has 13 now; run `iou-det eval"):
    load_runs([str(run)])
  edit(run / "config.json", lambda c: c | {"data": c["data"] | {"path": "/nowhere/data"}})
  with pytest.raises(UserError, match="data path /nowhere/data is not a folder"):
    load_runs([str(run)])


def test_runs_of_other_images_have_pages_of_their_own(tmp_path, copy_of, shapes_folder):
  a, b = copy_of("a"), copy_of("b")
  data = tmp_path / "data"
  shutil.copytree(shapes_folder, data)
  edit(b / "config.json", lambda c: c | {"data": c["data"] | {"path": str(data)}})
  assert len(load_runs([str(a), str(b)])) == 2  # the same images in another place
  labels = data / "annotations" / "instances_val.json"

  def moved(content):
    content["annotations"][0]["bbox"][0] += 1
    return content

  edit(labels, moved)
  read_data.cache_clear()
  with pytest.raises(UserError, match=r"b was scored on other objects than .*a: .*a page of their own"):
    load_runs([str(a), str(b)])


def test_the_command_writes_one_page(tmp_path, reference, copy_of):
  (tmp_path / "file").write_text("")
  refused = iou_det("report", f"--workdirs={reference[0]}", f"--out={tmp_path / 'file'}")
  assert refused.returncode == 2 and "is a file; give a folder" in refused.stderr
  run = copy_of("other")
  edit(run / "config.json", lambda c: c | {"loss": c["loss"] | {"eta": 0.25}})
  done = iou_det("report", f"--workdirs={reference[0]},{run}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  page = (tmp_path / "out" / "index.html").read_text()
  assert done.stdout.startswith(f"{tmp_path / 'out' / 'index.html'}: 2 runs")
  for title in ("Summary", "Training", "Precision and recall", "Scores and how well", "Errors", "Pictures"):
    assert title in page
  assert "loss.eta" in page and "0.25" in page
