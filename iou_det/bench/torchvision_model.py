"""torchvision's RetinaNet on the images of a file: the other side of `iou-det bench --against=torchvision`.

Runs in a process of its own, started by `iou_det.bench.against`, and imports no JAX, so that either side has
the whole device. Usage: python -m iou_det.bench.torchvision_model SETTINGS.json; prints one JSON line a mode.

The network has what ours has: frozen batch norm, frozen first stages, P6 from C5, 9 anchors a cell, the same
resizing and normalisation (torchvision's own, on the device), bfloat16 by autocast on a GPU, SGD with
momentum. Images are on the device as floats before the clock starts.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(settings_file: str) -> None:
  import torch
  import torchvision

  settings = json.loads(Path(settings_file).read_text())
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  torch.manual_seed(0)
  if device.type == "cuda":
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  arrays = np.load(settings["inputs"])
  height, width = (int(n) for n in arrays["image_size"][0])
  pixels = torch.from_numpy(arrays["image"][:, :height, :width]).permute(0, 3, 1, 2)
  images = [x.contiguous().to(device).float() / 255 for x in pixels]
  targets = [
    {"boxes": torch.from_numpy(b[v]).to(device), "labels": torch.from_numpy(k[v]).long().to(device)}
    for b, k, v in zip(arrays["boxes"], arrays["labels"], arrays["valid"], strict=True)
  ]
  largest, *others = settings["batch_sizes"]
  # Compiling is for throughput: one image at a time runs eagerly only.
  for mode, batch_size in (*(("eager", b) for b in (largest, *others)), ("compiled", largest)):
    row = measure(settings, device, images[:batch_size], targets[:batch_size], compiled=mode == "compiled")
    row |= {"mode": mode, "batch": batch_size, "device": device_name(device)}
    row["versions"] = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    print(json.dumps(row), flush=True)


def build(settings: dict[str, Any]) -> Any:
  """torchvision's RetinaNet as our config describes it."""
  from torchvision.models.detection import RetinaNet
  from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
  from torchvision.ops import FrozenBatchNorm2d
  from torchvision.ops.feature_pyramid_network import LastLevelP6P7

  channels = 2048 if settings["depth"] >= 50 else 512
  backbone = resnet_fpn_backbone(
    backbone_name=f"resnet{settings['depth']}",
    weights=None,
    norm_layer=FrozenBatchNorm2d,
    trainable_layers=4 - settings["frozen_stages"],
    returned_layers=[2, 3, 4],
    extra_blocks=LastLevelP6P7(channels, 256),
  )
  return RetinaNet(
    backbone,
    num_classes=settings["classes"],
    min_size=settings["short"],
    max_size=settings["long"],
    score_thresh=settings["score_threshold"],
    nms_thresh=settings["nms_iou"],
    detections_per_img=settings["max_detections"],
    topk_candidates=settings["candidates_per_level"],
  )


def measure(
  settings: dict[str, Any], device: Any, images: list[Any], targets: list[Any], *, compiled: bool
) -> dict[str, Any]:
  """Seconds of a training step or of detecting, in samples as `iou_det.bench.measure` takes them."""
  import torch

  cuda = device.type == "cuda"
  if cuda:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  training = settings["kind"] == "train"
  model = build(settings).to(device).train(training)
  optimizer = torch.optim.SGD(
    [p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, weight_decay=1e-4
  )
  if compiled:
    torch._dynamo.reset()
    model = torch.compile(model)
  autocast = torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()

  def step():
    with autocast:
      loss = sum(model(images, targets).values())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()

  def detect():
    with torch.inference_mode(), autocast:
      return model(images)

  call = step if training else detect
  synchronize = torch.cuda.synchronize if cuda else lambda: None
  start = time.perf_counter()
  result = call()
  synchronize()
  first = time.perf_counter() - start
  for _ in range(settings["warmup"]):
    result = call()
  synchronize()
  latency = not training and len(images) == 1
  calls = settings["calls_on_gpu"] if cuda and not latency else 1
  samples = []
  for _ in range(settings["repeats"]):
    start = time.perf_counter()
    for _ in range(calls):
      result = call()
    synchronize()
    samples.append((time.perf_counter() - start) / calls)
  found = {} if training else {"detections_per_image": float(np.mean([len(d["boxes"]) for d in result]))}
  return {
    "samples": samples,
    "warmup": settings["warmup"] + 1,
    "calls": calls,
    "first_call_seconds": first,
    "dtype": "bfloat16" if cuda else "float32",
    "device_peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    **({"loss_last": float(result)} if training else found),
  }


def device_name(device: Any) -> str:
  import torch

  return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


if __name__ == "__main__":
  main(sys.argv[1])
