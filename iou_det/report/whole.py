"""The page as a whole."""

from collections.abc import Sequence

from iou_det.report import page
from iou_det.report.errors import errors_section
from iou_det.report.gallery import make_gallery
from iou_det.report.learning import training_curves
from iou_det.report.precision import precision_section
from iou_det.report.ranking import ranking_section
from iou_det.report.runs import Run
from iou_det.report.scores import Intervals, make_groups
from iou_det.report.summary import summary
from iou_det.storage import AnyPath

BYTES = 15_000_000  # of a page: what opens at once and can be sent by mail
ROOM = 1_000_000  # for the page itself and for what JSON adds to pictures


def write_report(path: AnyPath, runs: Sequence[Run]) -> int:
  """Writes the page and returns its bytes."""
  groups = make_groups(runs)
  objects = any(s.matched.objects.any() for g in groups for s in g.seeds)
  intervals = Intervals(groups) if objects else None
  sections = [
    summary(groups, intervals),
    training_curves(groups),
    precision_section(groups, intervals),
    ranking_section(groups),
    errors_section(groups),
  ]
  room = BYTES - ROOM - sum(len(s.html.encode(errors="backslashreplace")) for s in sections)
  names = ", ".join(g.name for g in groups[:3]) + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
  return page.write_page(path, f"Detections of {names}", sections, make_gallery(list(runs), room))
