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
  R50: {"h100": Cost(72.39, 7.119, 1108)},
  (*R50, "--what=detect"): {"h100": Cost(24.42, 1.239, 320)},
  ("--config=deeppcb", "--target=h100"): {"h100": Cost(22.17, 2.751, 1253)},
  (*SMALL, "--target=h100:1x8,v5e:2x2"): {
    "h100:1x8": Cost(0.0854, 0.00693, 811, 3),
    "v5e:2x2": Cost(0.02298, 0.02022, 2046, 3),
  },
}


@pytest.mark.parametrize("flags", COSTS, ids=lambda flags: " ".join(f.removeprefix("--") for f in flags))
def test_costs(flags):
  rows = {row["target"]: row for row in compiled(*flags)}
  assert rows.keys() == COSTS[flags].keys()
  for target, row in rows.items():
    most = COSTS[flags][target]
    exchanges = sum(kind["count"] for kind in row["collectives"].values())
    found = Cost(row["bytes"] / 1e9, row["temporaries_bytes"] / 1e9, row["kernels"], exchanges)
    over = [name for name in Cost._fields if getattr(found, name) > SLACK * getattr(most, name)]
    assert not over, f"{target}: {found}; at most {SLACK} times {most}"
