"""docs/python.md's training step, run where nothing but jax, jaxtyping and what they need is installed."""

import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import docs

ROOT = Path(__file__).parents[1]

CHECK = """
import importlib
import sys
from importlib import metadata
from pathlib import Path

for name in ("flax", "optax", "ml_collections", "absl", "cv2", "orbax", "tensorflow_datasets", "pytest"):
  try:
    importlib.import_module(name)
  except ModuleNotFoundError:
    continue
  raise SystemExit(f"{name} can be imported here")

import jax
import jax.numpy as jnp
import numpy as np

from iou_det.ops import anchors as anchor_ops
from iou_det.ops import losses, matching, nms, other_losses
from iou_det.ops import boxes as box_ops

# Two images of 32x32, ground truths on the first of them only, a linear network.
anchors = jnp.asarray(anchor_ops.anchors((32, 32), strides=(16,), scale=1.0))
rng = np.random.default_rng(0)
count, classes = len(anchors), 3
truth = jnp.array([[2.0, 3.0, 20.0, 18.0], [14.0, 10.0, 30.0, 31.0]])
labels = jnp.array([2, 0])
matches = [matching.match(anchors, truth, jnp.array([real, real])) for real in (True, False)]
index, positive = jnp.stack([m.index for m in matches]), jnp.stack([m.positive for m in matches])
assert 2 <= positive[0].sum() < count and not positive[1].any()
batch = {
  "images": jnp.float32(rng.normal(size=(2, 5))),
  "target": (labels[index][..., None] == jnp.arange(classes)) & positive[..., None],
  "matched_boxes": truth[index],
  "counted": ~jnp.stack([m.ignored for m in matches]),
}
params = jnp.float32(rng.normal(size=(5, count * (classes + 4)), scale=0.1))


def your_network(params, images):
  out = (images @ params).reshape(len(images), count, classes + 4)
  return out[..., :classes], out[..., classes:]


exec(Path(sys.argv[1]).read_text())  # the page's: defines loss_fn and loss_and_gradients

loss, gradients = loss_and_gradients(params, batch)
assert np.isfinite(loss) and loss > 0
assert gradients.shape == params.shape and np.all(np.isfinite(gradients)) and np.any(gradients != 0)

# The plain losses in float64, by formulas of their own.
logits, deltas = (np.asarray(x, np.float64) for x in your_network(params, batch["images"]))
target, hit = np.asarray(batch["target"]), np.asarray(positive)
p = 1 / (1 + np.exp(-logits))
focal = np.where(target, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
plain = focal[np.asarray(batch["counted"])].sum()
box, anchor = (np.asarray(x, np.float64) for x in (truth[index], anchors))
size, anchor_size = box[..., 2:] - box[..., :2], anchor[:, 2:] - anchor[:, :2]
shift = (box[..., 2:] + box[..., :2]) / 2 - (anchor[:, 2:] + anchor[:, :2]) / 2
d = np.abs(deltas - np.concatenate([shift / anchor_size, np.log(size / anchor_size)], -1))[hit]
plain = (plain + np.where(d < 0.111, d * d / 0.222, d - 0.0555).sum()) / hit.sum()
np.testing.assert_allclose(loss_fn(params, batch, eta=0.0, lambd=0.0, w_loc=1.0), plain, rtol=1e-5)
assert abs(loss - plain) > 0.01  # and the weights do something

# The rest of the package's pure functions work here too.
kept = nms.nms(anchors, jax.nn.sigmoid(jnp.float32(logits[0])), iou_threshold=0.5, score_threshold=0.0,
               max_detections=3)
assert kept.valid.all()
assert np.all(np.isfinite(other_losses.balanced_l1(jnp.float32(d))))

print("\\n".join(sorted(d.metadata["Name"] for d in metadata.distributions())))
"""


def closure(*names: str) -> dict[str, list[Path]]:
  """The distributions and all that they need, each with its top-level files and folders."""
  found: dict[str, list[Path]] = {}
  waiting = list(names)
  while waiting:
    dist = distribution(waiting.pop())
    if dist.metadata["Name"] in found:
      continue
    tops = {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}  # ..: scripts
    found[dist.metadata["Name"]] = [Path(str(dist.locate_file(top))) for top in sorted(tops)]
    needs = [Requirement(line) for line in dist.requires or ()]
    waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
  return found


@pytest.fixture
def clean_python(tmp_path):
  """A Python that has jax, jaxtyping, what they need, and iou_det's source; the names of the first three."""
  venv.create(tmp_path / "env", symlinks=True)
  (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
  distributions = closure("jax", "jaxtyping")
  for tops in distributions.values():
    for top in tops:
      (site / top.name).symlink_to(top)
  (site / "iou_det").symlink_to(ROOT / "iou_det")
  return tmp_path / "env" / "bin" / "python", sorted(distributions)


def test_the_example_runs_with_nothing_but_jax_and_jaxtyping(clean_python, tmp_path):
  python, distributions = clean_python
  (example,) = [block.text for block in docs.blocks("python") if "def loss_fn" in block.text]
  (tmp_path / "example.py").write_text(example)
  (tmp_path / "check.py").write_text(CHECK)
  done = subprocess.run(  # -I: neither PYTHONPATH nor the user's packages
    [python, "-I", tmp_path / "check.py", tmp_path / "example.py"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == distributions
