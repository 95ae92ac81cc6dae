"""The Chromium that tests of pages drive."""

import os
import shutil
from importlib.util import find_spec


def chromium() -> str | None:
  """Its path: $IOU_DET_CHROMIUM, or one that is found by its usual names; None without playwright too."""
  names = ("chromium", "chromium-browser", "google-chrome")
  path = os.environ.get("IOU_DET_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
  return path if find_spec("playwright") else None
