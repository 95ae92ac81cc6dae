"""RetinaNet with the IoU-balanced losses of arXiv:1908.05641: `load_detector`; `iou_det.ops` stands alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from iou_det.detector import Detector, ImageDetections
  from iou_det.weights.load import load_detector

__all__ = ["Detector", "ImageDetections", "load_detector"]


def __getattr__(name: str) -> Any:
  """Imports the rest when it is asked for: `iou_det.ops` needs nothing but JAX."""
  if name == "load_detector":
    from iou_det.weights.load import load_detector

    return load_detector
  if name in __all__:
    from iou_det import detector

    return getattr(detector, name)
  raise AttributeError(f"module 'iou_det' has no attribute {name!r}")
