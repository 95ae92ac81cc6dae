"""Which anchors compete at test time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det import network
from iou_det.bench import synthetic
from tests.tiny import tinier_config


@pytest.mark.parametrize(("convention", "expected"), [("legacy", (12, 12, 3, 3)), ("modern", (18, 18, 6, 6))])
def test_anchors_in_the_padding_beyond_an_images_own_do_not_compete(monkeypatch, convention, expected):
  """As alone in a batch, padded to a multiple of 32, in mmdetection 0.6; in every view."""
  config = tinier_config("made up")
  config.anchors.convention = convention
  config.eval.update(tta_scales=(1.0, 0.5), tta_flip=True)
  batch = synthetic.batch(config, 1, 2, boxes=1)  # canvases of 2 x 3 cells of 3 anchors, and of 1 x 2
  batch |= {name: np.array([[64, 64]], np.int32) for name in ("image_size", "original_size")}

  def outputs(model, variables, images, mesh):
    cells = images.shape[1] // 32, images.shape[2] // 32
    return tuple([jnp.full((1, *cells, 3 * values), 2.0)] for values in (2, 4))

  monkeypatch.setattr(network, "forward", outputs)

  @jax.jit
  def scores(batch):
    found, candidates = network.look(config, network.make_model(config, 2), None, {}, batch, False)
    return [view.scores for view in candidates(found)]

  assert tuple(int((view > 0).any(axis=-1).sum()) for view in scores(batch)) == expected
