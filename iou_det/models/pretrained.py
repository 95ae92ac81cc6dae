"""Backbone weights from torchvision-layout files."""

from jaxtyping import PyTree

from iou_det.errors import UserError


def load_pretrained(source: str, variables: PyTree) -> PyTree:
  """Placeholder until the loader is written."""
  raise UserError(f"model.pretrained={source!r} cannot be loaded yet; set model.pretrained to an empty string")
