"""Early stopping (`config.train.stop_after`)."""

import jax
from absl import logging


def stops_early(scores: dict[int, float], stop_after: int) -> bool:
  """Whether so many evaluations in a row gave no higher AP than the best before; 0: never.

  Args:
    scores: AP by step, the same in all processes.
  """
  best = max(scores, key=lambda step: (scores[step], -step), default=0)  # the first of equals
  worse = sum(step > best for step in scores)
  if not stop_after or worse < stop_after:
    return False
  if jax.process_index() == 0:
    logging.info(
      f"{worse} evaluations without a higher AP than {scores[best]:.3f} of step {best}: the run is finished "
      f"(train.stop_after={stop_after}; 0 trains on)"
    )
  return True
