"""What happens to a batch on the device, inside the step's jit: resize, flip, jitter, normalise, pad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Augment(NamedTuple):
  flip_horizontal: float = 0.0
  flip_vertical: float = 0.0
  transpose: float = 0.0
  scale_jitter: tuple[float, float] = (1.0, 1.0)


class Inputs(NamedTuple):
  images: Float[Array, "batch height width 3"]
  boxes: Float[Array, "batch boxes 4"]
  labels: Int[Array, "batch boxes"]
  valid: Bool[Array, "batch boxes"]
  image_size: Int[Array, "batch 2"]
  scale: Float[Array, "batch 2"]


def preprocess(batch, *, size, short, long, mean, std, convention, augment, key):
  H, W = size
  def one(image, image_size, original, boxes, labels, valid, epoch, index):
    h, w = image_size[0].astype(jnp.float32), image_size[1].astype(jnp.float32)
    s = jnp.minimum(short / jnp.minimum(h, w), long / jnp.maximum(h, w))
    off = jnp.zeros(2)
    if augment is not None:
      k = jax.random.fold_in(jax.random.fold_in(key, epoch), index)
      u = jax.random.uniform(k, (6,))
      lo, hi = augment.scale_jitter
      s = s * (lo + (hi - lo) * u[3])
    nh, nw = jnp.floor(h * s + 0.5), jnp.floor(w * s + 0.5)
    if augment is not None:
      off = jnp.floor(jnp.maximum(jnp.array([nh - H, nw - W]), 0) * u[4:6])
    ch, cw = jnp.minimum(nh, H), jnp.minimum(nw, W)
    sy, sx = nh / h, nw / w
    y = jnp.arange(H, dtype=jnp.float32); x = jnp.arange(W, dtype=jnp.float32)
    b = jnp.concatenate([boxes[:, :2], boxes[:, 2:]], -1) * jnp.array([1.0]) * jnp.stack([sx, sy, sx, sy]) - jnp.stack([off[1], off[0], off[1], off[0]])
    fx = fy = jnp.zeros((), bool)
    if augment is not None:
      fx, fy = u[0] < augment.flip_horizontal, u[1] < augment.flip_vertical
      y = jnp.where(fy, ch - 1 - y, y); x = jnp.where(fx, cw - 1 - x, x)
      b = jnp.where(fx, jnp.stack([cw - b[:, 2], b[:, 1], cw - b[:, 0], b[:, 3]], -1), b)
      b = jnp.where(fy, jnp.stack([b[:, 0], ch - b[:, 3], b[:, 2], ch - b[:, 1]], -1), b)
    def taps(c, scale, o, n):
      c = jnp.clip((c + o + 0.5) / scale - 0.5, 0, n - 1)
      i = jnp.floor(c); f = c - i
      i = i.astype(jnp.int32)
      return i, jnp.minimum(i + 1, n.astype(jnp.int32) - 1), f
    y0, y1, fy_ = taps(y, sy, off[0], h); x0, x1, fx_ = taps(x, sx, off[1], w)
    rows = image[y0].astype(jnp.float32) * (1 - fy_)[:, None, None] + image[y1].astype(jnp.float32) * fy_[:, None, None]
    out = rows[:, x0] * (1 - fx_)[None, :, None] + rows[:, x1] * fx_[None, :, None]
    inside = (jnp.arange(H) < ch)[:, None, None] & (jnp.arange(W) < cw)[None, :, None]
    out = jnp.where(inside, (out - jnp.array(mean)) / jnp.array(std), 0)
    b = jnp.clip(b, 0, jnp.stack([cw, ch, cw, ch]))
    valid = valid & ((b[:, 2:] - b[:, :2]) >= 1).all(-1)
    if augment is not None and augment.transpose:
      t = u[2] < augment.transpose
      out = jnp.where(t, out.transpose(1, 0, 2), out)
      b = jnp.where(t, b[:, jnp.array([1, 0, 3, 2])], b)
      ch, cw = jnp.where(t, cw, ch), jnp.where(t, ch, cw)
    scale = jnp.stack([nh, nw]) / original.astype(jnp.float32)
    return Inputs(out, b, labels, valid, jnp.stack([ch, cw]).astype(jnp.int32), scale)
  return jax.vmap(one)(batch["image"], batch["image_size"], batch["original_size"], batch["boxes"], batch["labels"], batch["valid"], batch["epoch"], batch["index"])
