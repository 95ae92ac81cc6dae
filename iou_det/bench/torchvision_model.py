"""torchvision's RetinaNet on the images of a file: the other side of `iou-det bench --against=torchvision`.

Runs in a process of its own, started by `iou_det.bench.against`, and imports no JAX, so that either side has
the whole device. Usage: python -m iou_det.bench.torchvision_model FOLDER; FOLDER has settings.json and
inputs.npz; prints one JSON line a mode.

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


def main(folder: str) -> None:
  import torch
  import torchvision

  settings = json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8"))
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  torch.manual_seed(0)
  if device.type == "cuda":
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  arrays = np.load(Path(folder) / "inputs.npz")
  height, width = (int(n) for n in arrays["image_size"][0])
  pixels = torch.from_numpy(arrays["image"][:, :height, :width]).permute(0, 3, 1, 2)
  images = [x.contiguous().to(device).float() / 255 for x in pixels]
  targets = [
    {"boxes": torch.from_numpy(b[v]).to(device), "labels": torch.from_numpy(k[v]).long().to(device)}
    for b, k, v in zip(arrays["boxes"], arrays["labels"], arrays["valid"], strict=True)
  ]
  same = {
    "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
  }
  # Compiling is for throughput: one image at a time runs eagerly only.
  modes = [("eager", len(images)), ("compiled", len(images))]
  if settings["kind"] == "predict" and len(images) > 1:
    modes.insert(1, ("eager", 1))
  for mode, batch_size in modes:
    model = build(settings["config"], settings["classes"]).to(device).train(settings["kind"] == "train")
    if mode == "compiled":
      torch._dynamo.reset()
      model = torch.compile(model)
    row = measure(settings, model, images[:batch_size], targets[:batch_size])
    print(json.dumps(row | same | {"mode": mode, "batch": batch_size}), flush=True)


def build(config: dict[str, Any], num_classes: int) -> Any:
  """torchvision's RetinaNet as our config describes it."""
  from torchvision.models.detection import RetinaNet
  from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
  from torchvision.ops import FrozenBatchNorm2d
  from torchvision.ops.feature_pyramid_network import LastLevelP6P7

  model, evaluation = config["model"], config["eval"]
  backbone = resnet_fpn_backbone(
    backbone_name=f"resnet{model['depth']}",
    weights=None,
    norm_layer=FrozenBatchNorm2d,
    trainable_layers=4 - model["frozen_stages"],
    returned_layers=[2, 3, 4],
    extra_blocks=LastLevelP6P7(2048 if model["depth"] >= 50 else 512, 256),
  )
  return RetinaNet(
    backbone,
    num_classes=num_classes,
    min_size=config["data"]["short"],
    max_size=config["data"]["long"],
    score_thresh=evaluation["score_threshold"],
    nms_thresh=evaluation["nms_iou"],
    detections_per_img=evaluation["max_detections"],
    topk_candidates=evaluation["candidates_per_level"],
  )


def measure(settings: dict[str, Any], model: Any, images: list[Any], targets: list[Any]) -> dict[str, Any]:
  """Seconds of a training step or of detecting, in samples as `iou_det.bench.measure` takes them."""
  import torch

  cuda, training = images[0].is_cuda, settings["kind"] == "train"
  if cuda:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  optimizer = torch.optim.SGD(
    [p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, weight_decay=1e-4
  )
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


if __name__ == "__main__":
  main(sys.argv[1])
