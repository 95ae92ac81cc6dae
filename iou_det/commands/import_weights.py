"""A RetinaNet that torchvision, mmdetection or detectron2 trained, as a detector of this project.

  iou-det import-weights --from=torchvision retinanet_resnet50_fpn_coco-eeacb38b.pth --out=imported
  iou-det import-weights --from=detectron2 model_final_bfca0b.pkl --out=imported

FILE is .safetensors, .pth (needs torch) or .pkl; a training checkpoint is unwrapped, no code in it is run.
Its tensors have to be exactly that network's, of any ResNet, width and number of classes. Written is
OUT/detector.safetensors: weights, config, category table, and a model card that also stands beside it. Sizes,
normalisation, thresholds, anchors and losses are those of the published detectors; a file does not say
whether it was trained with others.
"""

from pathlib import Path

from absl import flags

from iou_det.data import coco
from iou_det.errors import UserError
from iou_det.storage import local_path, user_path
from iou_det.streams import one_line
from iou_det.weights import saved
from iou_det.weights.card import model_card, write_card
from iou_det.weights.foreign import FORMATS, read_foreign

FROM = flags.DEFINE_enum("from", None, list(FORMATS), "What trained it.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for detector.safetensors.", required=True)
ANNOTATIONS = flags.DEFINE_string(
  "annotations", None, "COCO-format JSON with the categories that it was trained on, if they are not COCO's."
)
NORM_EPS = flags.DEFINE_float(
  "norm_eps",
  None,
  "Eps of its batch norm. Default: 1e-5; 0 for torchvision's V1 with constant norms, as its published file "
  "has it (give 1e-5 if yours was trained from an ImageNet backbone).",
  lower_bound=0,
)


def main(arguments: list[str]) -> None:
  if len(arguments) != 1:
    raise UserError(
      f"give one FILE, got {len(arguments)}: iou-det import-weights --from=FORMAT FILE --out=DIR"
    )
  (source,), key = arguments, FROM.value
  out = user_path(OUT.value, write=True) / saved.FILE
  annotated: tuple = ()
  if ANNOTATIONS.value:
    path = local_path(ANNOTATIONS.value, "--annotations")
    annotated = coco.read_coco(path).categories
  detector = read_foreign(source, key, annotated=annotated, norm_eps=NORM_EPS.value)
  about = {"data": f"what {one_line(Path(source).name)} was, by {key}: not known here"}
  detector = detector._replace(facts=about)
  card = model_card(detector, out.name, "safetensors")
  saved.write_saved(out, detector, card)
  write_card(out, card)
  print(f"wrote {out}: {len(detector.categories)} classes")
  print(f"detects as {key} does; {FORMATS[key].differs}")
