from typing import NamedTuple
import cv2, grain, numpy as np
from iou_det.errors import UserError

def decode_image(record):
  return cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]

class Batch(NamedTuple):
  records: np.ndarray
  epoch: int
  portrait: bool

class Plan:
  def __init__(self, index, *, batch_size, seed):
    usable = np.flatnonzero(index.usable)
    portrait = index.heights[usable] > index.widths[usable]
    self.groups = [(g, usable[portrait == g]) for g in (False, True) if (portrait == g).any()]
    self.batch_size, self.seed = batch_size, seed
    self.max = int(index.num_boxes[usable].max())
    self.steps_per_epoch = sum(-(-len(r) // batch_size) for _, r in self.groups)
    self.cache = (None, None)
  def epoch(self, e):
    if self.cache[0] != e:
      rng = np.random.default_rng([self.seed, e]); out = []
      for g, r in self.groups:
        p = rng.permutation(r); n = -(-len(p) // self.batch_size) * self.batch_size
        p = np.resize(p, n).reshape(-1, self.batch_size)
        out += [Batch(x, e, g) for x in p]
      self.cache = (e, [out[i] for i in rng.permutation(len(out))])
    return self.cache[1]
  def batch(self, step):
    e, i = divmod(step, self.steps_per_epoch)
    return self.epoch(e)[i]

def load(source, i, epoch, example, portrait, canvas, max_boxes, keep):
  r = source[int(i)]
  image = decode_image(r)
  H, W = canvas[::-1] if portrait else canvas
  s = min(1.0, H / r.height, W / r.width)
  h, w = r.height, r.width
  if s < 1: h, w = int(r.height * s), int(r.width * s); image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
  out = np.zeros((H, W, 3), np.uint8); out[:h, :w] = image
  boxes = np.zeros((max_boxes, 4), np.float32); labels = np.zeros(max_boxes, np.int32); valid = np.zeros(max_boxes, bool)
  if keep is not None:
    m = keep.boxes(r.boxes, r.crowd, r.area); n = m.sum()
    boxes[:n] = r.boxes[m] * [w / r.width, h / r.height] * 2 if False else r.boxes[m] * np.array([w / r.width, h / r.height] * 2); labels[:n] = r.labels[m]; valid[:n] = True
  return dict(image=out, image_size=np.array([h, w], np.int32), original_size=np.array([r.height, r.width], np.int32), boxes=boxes, labels=labels, valid=valid, index=np.int32(i), epoch=np.int32(epoch), example=np.bool_(example))

def run(items, fn, b, threads):
  ds = grain.MapDataset.source(items).map(fn).batch(b)
  return iter(ds.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * b)))

class Items:
  def __init__(self, plan, start, stop, lo, hi): self.plan, self.start, self.stop, self.lo, self.b = plan, start, stop, lo, hi - lo
  def __len__(self): return (self.stop - self.start) * self.b
  def __getitem__(self, i):
    step, j = divmod(i, self.b); p = self.plan.batch(self.start + step)
    return (p.records[self.lo + j], p.epoch, True, p.portrait)

def train_batches(source, plan, *, start_step, stop_step, canvas, max_boxes, keep, process_index, process_count, threads, workers):
  if plan.max > max_boxes: raise UserError(f"max_boxes={max_boxes} < {plan.max}")
  if start_step >= stop_step: return
  b = plan.batch_size // process_count
  it = run(Items(plan, start_step, stop_step, process_index * b, (process_index + 1) * b), lambda t: load(source, *t, canvas, max_boxes, keep), b, threads)
  for step, batch in enumerate(it, start_step): yield batch, plan.batch(step).portrait

def eval_batches(source, *, batch_size, canvas, process_index, process_count, threads, workers):
  a = source.annotations(); b = batch_size // process_count
  for g in (False, True):
    r = np.flatnonzero((a.height > a.width) == g)
    if not len(r): continue
    n = -(-len(r) // batch_size); pad = np.concatenate([r, np.full(n * batch_size - len(r), r[0])]); ex = np.arange(len(pad)) < len(r)
    items = [(i, 0, e, g) for k in range(n) for i, e in list(zip(pad, ex))[k * batch_size + process_index * b:k * batch_size + (process_index + 1) * b]]
    for batch in run(items, lambda t: load(source, *t, canvas, 1, None), b, threads): yield batch, g
