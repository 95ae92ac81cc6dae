"""Writes one HTML page about trained runs: index.html, which holds all it needs and opens by double click.

Several runs are compared, the first being what the others are measured by; they must have been scored on the
same images. Runs that differ by their seed alone stand together. Nothing is trained, and nothing is detected
again but for --nms_regret.
"""

from absl import flags

from iou_det.errors import UserError
from iou_det.report.ranking import has_regret
from iou_det.report.runs import load_runs
from iou_det.report.whole import write_report
from iou_det.storage import user_path

WORKDIRS = flags.DEFINE_list(
  "workdirs", None, "Folders that `iou-det train` wrote, the one to compare with first.", required=True
)
OUT = flags.DEFINE_string("out", None, "Folder for index.html.", required=True)
SPLIT = flags.DEFINE_string("split", "", "Split that was scored; default: the config's data.val_split.")
NMS_REGRET = flags.DEFINE_bool(
  "nms_regret", False, "Also how often NMS drops the better box: runs the networks once more."
)


def main() -> None:
  out = user_path(OUT.value, write=True)
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={OUT.value} is a file; give a folder")
  runs = load_runs(WORKDIRS.value, SPLIT.value)
  if NMS_REGRET.value:
    from iou_det.paper.results import find_candidates  # imports what detects

    for run in filter(has_regret, runs):
      find_candidates(run.workdir, SPLIT.value)
    runs = load_runs(WORKDIRS.value, SPLIT.value)
  out.mkdir(parents=True, exist_ok=True)
  path = out / "index.html"
  size = write_report(path, runs)
  what = f"{len(runs)} run{'s' * (len(runs) > 1)}, {size / 1e6:.1f} MB"
  print(f"{path}: {what}; open it in a browser")
