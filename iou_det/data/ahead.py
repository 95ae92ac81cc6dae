"""Reading ahead of what is worked on, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from iou_det.errors import UserError

T = TypeVar("T")


def read_ahead(
  images: Iterable[Any], read: Callable[[Any, str], T], threads: int, most: int
) -> Iterator[T | UserError]:
  """What `read` makes of each, in order, or why it does not; threads make at most so many ready before."""

  def pixels(image: Any, name: str) -> T | UserError:
    try:
      return read(image, name)
    except UserError as error:
      return error

  waiting: deque[Future] = deque()
  with ThreadPoolExecutor(threads) as pool:
    for i, image in enumerate(images):
      waiting.append(pool.submit(pixels, image, f"image {i}"))
      if len(waiting) > most:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
