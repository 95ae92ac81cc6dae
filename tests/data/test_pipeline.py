"""Batches do not depend on hosts, threads or workers; each image once; bad input is named."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial

import cv2
import numpy as np
import psutil
import pytest

from iou_det.config import base_config
from iou_det.data import plan as plan_lib
from iou_det.data.pipeline import Example, Loader, Stack, eval_batches, fit, train_batches
from iou_det.data.plan import TrainingFilter, check_max_boxes, log_shrunk, scan
from iou_det.data.source import Category, Source, from_rows
from iou_det.errors import UserError

SIZES = [
  (40, 60),
  (60, 40),
  (48, 48),
  (50, 64),
  (64, 33),
  (40, 41),
  (32, 64),
  (64, 40),
  (33, 50),
  (90, 140),
  (20, 64),
]
KEEP = TrainingFilter()


def encoded(sizes, i):
  """Image i is filled with colour i, on red."""
  image = np.full((*sizes[i], 3), i, np.uint8)
  image[..., 0] = 200
  return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def memory(read=None, sizes=SIZES):
  """A source in memory: image i has i % 3 + 1 boxes, the last of them a crowd."""
  rows = [(100 + i, f"{i}.png", h, w) for i, (h, w) in enumerate(sizes)]
  boxes = [
    [(1 + k, 2, 8.5, 9, k % 2, k == 2, 76.5, 10 * i + k) for k in range(i % 3 + 1)] for i in range(len(sizes))
  ]
  categories = (Category(3, "a"), Category(7, "b"))
  return Source("memory", categories, from_rows(rows, boxes), read or partial(encoded, sizes))


def make_config(**data):
  config = base_config()
  config.data.update(canvas=(64, 96), short=64, long=96, max_boxes=3, threads=2)
  config.data.update(data)
  config.train.batch_size = 4
  return config


def make_plan(seed=0):
  config = make_config()
  config.seed = seed
  return plan_lib.make_plan(memory(), config)


def read(start=0, stop=8, process=(0, 1), threads=2, workers=0, source=None):
  data = make_config(threads=threads, workers=workers).data
  return list(train_batches(source or memory(), make_plan(), data, range(start, stop), process))


def assert_same(a, b):
  assert len(a) == len(b)
  for (left, portrait), (right, other) in zip(a, b, strict=True):
    assert portrait == other and left.keys() == right.keys()
    for name in left:
      np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_an_epoch_has_each_usable_image_in_batches_of_one_orientation():
  plan = make_plan()
  batches = [plan.batch(s) for s in range(plan.steps_per_epoch)]
  usable = [i for i, (h, w) in enumerate(SIZES) if min(h, w) >= 32]
  assert sorted({int(i) for b in batches for i in b.records}) == usable  # image 10 is too small
  for b in batches:
    assert len(b.records) == 4 and {SIZES[i][0] > SIZES[i][1] for i in b.records} == {b.portrait}
  assert {b.portrait for b in batches} == {False, True}
  assert plan.batch(plan.steps_per_epoch).epoch == 1

  def order(p, epoch):
    steps = range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch)
    return [p.batch(s).records.tolist() for s in steps]

  assert order(plan, 0) == order(make_plan(), 0) != order(plan, 1)
  assert order(plan, 0) != order(make_plan(seed=1), 0)


def test_a_batch_has_the_seed_of_its_augmentation():
  batches = train_batches(memory(), make_plan(seed=3), make_config().data, range(1), (0, 1))
  assert [batch["seed"].tolist() for batch, _ in batches] == [[3] * 4]


def test_a_batch_holds_decoded_pixels_and_the_boxes_to_train_on():
  for batch, portrait in read():
    assert batch["image"].shape == (4, *((96, 64) if portrait else (64, 96)), 3)
    for row, i in enumerate(batch["index"]):
      h, w = batch["image_size"][row]
      np.testing.assert_array_equal(batch["original_size"][row], SIZES[i])
      assert (batch["image"][row, :h, :w] == [200, i, i]).all()
      assert not batch["image"][row, h:].any() and not batch["image"][row, :, w:].any()
      number = min(i % 3 + 1, 2)  # the third box is a crowd
      assert batch["valid"][row].tolist() == [k < number for k in range(3)]
      scale = np.array([w / SIZES[i][1], h / SIZES[i][0]] * 2)
      np.testing.assert_allclose(batch["boxes"][row, 0], [1, 2, 9.5, 11] * scale, rtol=1e-6)
      if SIZES[i] == (90, 140):
        assert (h, w) == (62, 96)  # shrunk to its canvas
      else:
        assert (h, w) == SIZES[i]


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (4, 0), (0, 0), (2, 2)])
def test_threads_and_workers_do_not_change_batches(threads, workers):
  assert_same(read(threads=threads, workers=workers), read())


def test_hosts_split_each_batch_between_them():
  whole = read()
  parts = [read(process=(p, 2)) for p in range(2)]
  for step, (batch, _) in enumerate(whole):
    for name, value in batch.items():
      np.testing.assert_array_equal(
        np.concatenate([part[step][0][name] for part in parts]), value, err_msg=name
      )


def test_batch_size_that_the_processes_cannot_share_is_an_error_at_once():
  data = make_config().data
  with pytest.raises(UserError, match="batch_size=4 is not divisible by the 3 processes"):
    train_batches(memory(), make_plan(), data, range(8), (0, 3))
  with pytest.raises(UserError, match="batch_size=4 is not divisible by the 3 processes"):
    eval_batches(memory(), data, 4, (0, 3))


def test_resuming_at_a_step_continues_the_same_order():
  assert_same(read(start=5), read()[5:])


def test_plan_keeps_the_epochs_that_threads_and_loop_are_in(monkeypatch):
  plan, made = make_plan(), []
  make = plan._batches
  monkeypatch.setattr(plan, "_batches", lambda epoch: made.append(epoch) or make(epoch))
  for epoch in (0, 1, 0, 1, 2, 1, 2):
    assert plan.batch(epoch * plan.steps_per_epoch).epoch == epoch
  assert made == [0, 1, 2], "orders were made again and again while threads read ahead over an epoch's end"
  plan.batch(10 * plan.steps_per_epoch)
  assert list(plan._epochs) == [10], "old epochs are kept"


def test_fillers_and_shrunk_images_are_counted(caplog):
  with caplog.at_level(logging.INFO):
    make_plan()
    log_shrunk(np.array([90, 64, 97]), np.array([140, 96, 64]), make_config().data)
  # 7 landscape images (of 8 one is too small) and 3 portrait ones, in batches of 4.
  assert "7 landscape and 3 portrait images in 3 batches of 4 an epoch; 2 images again" in caplog.text
  assert "2 of 3 images exceed data.canvas=(64, 96)" in caplog.text


def test_reading_ahead_is_bounded():
  reads = []

  def counting(i):
    reads.append(i)
    return encoded(SIZES, i)

  batches = train_batches(memory(counting), make_plan(), make_config().data, range(1000), (0, 1))
  next(batches)
  before = -1
  while len(reads) != before:  # until the threads rest
    before = len(reads)
    time.sleep(0.3)
  assert 4 * 4 <= len(reads) <= 4 * 7  # one batch out, two stacked, three ahead; one between them
  assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("hosts", [1, 3])
def test_evaluation_has_every_image_once(hosts):
  seen, lengths = [], set()
  for host in range(hosts):
    batches = list(eval_batches(memory(), make_config().data, 6, (host, hosts)))
    lengths.add(len(batches))
    seen += [int(i) for batch, _ in batches for i in batch["index"][batch["example"]]]
  assert sorted(seen) == list(range(len(SIZES)))
  assert len(lengths) == 1, "hosts that yield different numbers of batches would wait for each other forever"


def test_evaluation_by_more_workers_than_batches():
  def batches(workers):
    return list(eval_batches(memory(), make_config(threads=1, workers=workers).data, 8, (0, 1)))

  assert_same(batches(4), batches(0))


def test_too_few_rows_for_boxes_says_how_many_are_needed():
  index = scan(memory(), KEEP)
  check_max_boxes(index, 2)
  with pytest.raises(UserError, match=r"max_boxes=1 is too small: \d+ images have more boxes, up to 2"):
    check_max_boxes(index, 1)


def broken(i):
  return b"\x89PNG no image"


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_cannot_be_decoded_is_named(workers):
  with pytest.raises(
    UserError, match=r"image \d+\.png \(id \d+\): no picture, but of no kind .*mend it, or drop it"
  ):
    read(workers=workers, source=memory(broken))


def truncated(i):
  return cv2.imencode(".jpg", np.zeros((*SIZES[i], 3), np.uint8))[1].tobytes()[:-2]


def test_truncated_jpeg_is_named_although_the_decoder_would_take_it():
  with pytest.raises(UserError, match=r"image \d+\.png \(id \d+\): truncated JPEG"):
    read(source=memory(truncated))


def test_image_of_another_size_than_annotated_is_named():
  source = memory()
  annotations = dataclasses.replace(source.annotations, height=np.full(len(source), 77, np.int32))
  with pytest.raises(UserError, match=r"its annotation says \d+x77"):
    read(source=dataclasses.replace(source, annotations=annotations))


def test_left_out_boxes_may_come_first():
  """A batch has the boxes and labels that the filter keeps, wherever they are in the record."""
  rows = [
    (0, 0, 50, 50, 3, True, 2500.0, 0),
    (1, 2, 8, 7, 1, False, 56.0, 1),
    (5, 5, 0.5, 4, 2, False, 2.0, 2),
    (3, 4, 17, 16, 0, False, 272.0, 3),
  ]
  one = Source("one", (), from_rows([(1, "a.png", 50, 64)], [rows]), partial(encoded, [(50, 64)]))
  row = Loader(one, (64, 96), 3, KEEP)(Example(0, 0, False, True))
  np.testing.assert_array_equal(row["boxes"], [[1, 2, 9, 9], [3, 4, 20, 20], [0, 0, 0, 0]])
  np.testing.assert_array_equal(row["labels"], [1, 0, 0])
  np.testing.assert_array_equal(row["valid"], [True, True, False])


def test_shrinking_averages_the_pixels_it_merges():
  image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
  small = fit(image, (45, 70))
  means = image.reshape(45, 2, 70, 2, 3).mean(axis=(1, 3))
  assert np.abs(small - means).max() <= 0.5
  assert fit(image, (90, 140)) is image


def test_memory_of_a_batch_is_used_again_only_when_nothing_refers_to_it():
  stack, load = Stack((64, 96)), Loader(memory(), (64, 96), 3, KEEP)
  rows = [[load(Example(i, 0, False, True)) for i in pair] for pair in ((0, 2), (9, 4), (3, 5))]
  first = stack(rows[0])
  address, whole = first["image"].ctypes.data, first["image"].copy()
  part = first["image"][1][10:20]  # as when a batch is split over devices
  del first
  assert stack(rows[1])["image"].ctypes.data != address
  np.testing.assert_array_equal(part, whole[1][10:20])
  del part
  kept = [stack(rows[2]), stack(rows[0])]  # the second batch's memory, then the first's or the other way
  assert address in [batch["image"].ctypes.data for batch in kept]
  np.testing.assert_array_equal(kept[1]["image"], whole)  # nothing is left of the larger image in between


# Prints what it has read after each line of its input.
WORKERS = """
import sys
if __name__ == "__main__":
  from absl import flags
  flags.FLAGS.mark_as_parsed()
  from iou_det.config import base_config
  from iou_det.data.pipeline import eval_batches
  from iou_det.data.shapes import Shapes
  data = base_config().data
  data.workers = 2
  batches = eval_batches(Shapes("val", images=400).source(), data, 8, (0, 1))
  for line in sys.stdin:
    print(next(batches)[0]["index"].tolist(), flush=True)
"""


def test_workers_ignore_ctrl_c_and_end_with_a_parent_that_was_killed(tmp_path):
  (tmp_path / "program.py").write_text(WORKERS)
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  environment = os.environ | {"PYTHONPATH": os.getcwd()}
  parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environment, **pipes)

  def read():
    parent.stdin.write("\n")
    parent.stdin.flush()
    return json.loads(parent.stdout.readline())

  assert read() == list(range(8)) and read() == list(range(8, 16))  # of both
  workers = [p for p in psutil.Process(parent.pid).children() if "spawn_main" in p.cmdline()[-2]]
  assert len(workers) == 2
  for worker in workers:
    worker.send_signal(signal.SIGINT)
  for start in range(16, 160, 8):  # more than were ready
    assert read() == list(range(start, start + 8))
  parent.kill()
  parent.wait()
  assert not psutil.wait_procs(workers, timeout=20)[1]
