"""What the step and detection cost on absent chips, by their compilers, must not grow.

Raise no figure without a reason; where a change saves something, set the figures anew, and see them fail
without the change. `iou-det compile` with the flags here prints them.
"""

from typing import NamedTuple

import pytest

from tests.compilers import compiled

pytestmark = pytest.mark.aot
SLACK = 1.03
# Few anchors and a small optimizer: what devices exchange does not depend on them, the seconds do.
SMALL = (
  "--config=shapes", "--classes=4", "--batch_size=16", "--config.train.optimizer=sgd",
  "--config.data.short=64", "--config.data.long=96", "--config.data.canvas=(64,96)",
)  # fmt: skip


class Cost(NamedTuple):
  """Of a chip, as `iou-det compile` gave it."""

  gigabytes: float  # moved
  temporaries: float  # GB
  kernels: int
  collectives: int = 0


R50 = ("--config=retinanet:short=800", "--batch_size=16", "--target=h100")
COSTS = {
  R50: Cost(101.54, 15.04, 1263),  # 25 s
}


@pytest.mark.parametrize("flags", COSTS, ids=lambda flags: " ".join(f.removeprefix("--") for f in flags))
def test_costs(flags):
  (row,) = compiled(*flags)
  bound = COSTS[flags]
  found = Cost(
    row["bytes"] / 1e9,
    row["temporaries_bytes"] / 1e9,
    row["kernels"],
    sum(kind["count"] for kind in row["collectives"].values()),
  )
  assert found.collectives <= bound.collectives, f"{found}; at most {bound}"
  over = [name for name in Cost._fields[:3] if getattr(found, name) > SLACK * getattr(bound, name)]
  assert not over, f"{found}; at most {SLACK} times {bound}"
