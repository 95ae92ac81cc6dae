"""The losses in a project that has only jax and jaxtyping: the README's example, in such an environment."""

import importlib.metadata
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CHECK = """
import importlib.util
for name in "flax optax orbax ml_collections absl cv2 grain tensorflow_datasets beartype".split():
  assert importlib.util.find_spec(name) is None, name + " is installed"

import numpy as np
from iou_det.ops import anchors, boxes, comparison, losses, matching, nms

rng = np.random.default_rng(0)
grid = jnp.asarray(anchors.anchors((64, 96), strides=(16, 32), octaves=1, convention="modern"))
truth = jnp.float32([[10, 8, 40, 44], [50, 20, 90, 60]])
matched = matching.match(grid, truth, jnp.array([True, True]))
logits = jnp.float32(rng.normal(size=(2, len(grid), 3)))
deltas = jnp.float32(0.1 * rng.normal(size=(2, len(grid), 4)))
batched = lambda x: jnp.broadcast_to(x, (2, *x.shape))
arguments = (grid, batched(truth[matched.index]), batched(matched.index), batched(matched.positive))
value, gradients = jax.jit(jax.value_and_grad(detection_loss, (0, 1)))(logits, deltas, *arguments)
assert matched.positive.any() and np.isfinite(value)
assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)

# Without exponents it is plain RetinaNet, written out.
plain = detection_loss(logits, deltas, *arguments, eta=0.0, lambd=0.0, w_loc=1.0)
focal = l1 = 0.0
for image in range(2):
  for a in range(len(grid)):
    for k in range(3):
      p = 1 / (1 + np.exp(-float(logits[image, a, k])))
      own = bool(matched.positive[a]) and int(matched.index[a]) == k
      focal += -0.25 * (1 - p) ** 2 * np.log(p) if own else -0.75 * p**2 * np.log(1 - p)
    if matched.positive[a]:
      wanted = np.asarray(boxes.encode(truth[matched.index[a]], grid[a]), np.float64)
      d = np.abs(np.asarray(deltas[image, a], np.float64) - wanted)
      l1 += np.where(d <= 0.11, d * d / 0.22, d - 0.055).sum()
np.testing.assert_allclose(plain, (focal + l1) / (2 * int(matched.positive.sum())), rtol=1e-4)
print("the library works")
"""


def distributions(*roots):
  """Names of the distributions that these need, themselves included."""
  found, waiting = {}, list(roots)
  while waiting:
    name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
    if name not in found:
      found[name] = importlib.metadata.distribution(name)
      needs = [Requirement(r) for r in found[name].requires or []]
      waiting += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
  return found.values()


@pytest.fixture
def clean_python(tmp_path):
  """Interpreter of an environment with links to jax, jaxtyping, what they need, and iou_det; nothing else."""
  venv.create(tmp_path / "env", with_pip=False)
  (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
  for distribution in distributions("jax", "jaxtyping"):
    here = Path(str(distribution.locate_file("")))
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
      if not (packages / top).exists():
        (packages / top).symlink_to(here / top)
  (packages / "iou_det").symlink_to(ROOT / "iou_det")
  return tmp_path / "env" / "bin" / "python"


def test_the_readmes_example_runs_with_only_jax_and_jaxtyping(clean_python, tmp_path):
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  (example,) = [block for block in blocks if "from iou_det.ops import" in block]
  assert len(example.splitlines()) <= 20
  (tmp_path / "script.py").write_text(example + CHECK)
  done = subprocess.run([clean_python, "-I", tmp_path / "script.py"], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "the library works"
  assert sys.prefix not in subprocess.run(
    [clean_python, "-I", "-c", "import sys; print(sys.path)"], capture_output=True, text=True
  ).stdout  # fmt: skip
