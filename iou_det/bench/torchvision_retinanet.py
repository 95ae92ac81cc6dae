"""torchvision's RetinaNet on inputs of the same sizes, for `bench --against=torchvision`.

A process of its own, so that neither framework holds the other's memory: it imports nothing of JAX and prints
one JSON line a measurement.
"""

import argparse
import contextlib
import json
import time

import torch
import torchvision
from torchvision.models.detection import retinanet_resnet50_fpn


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("kind", choices=("train", "predict"))
  for name in ("batch_size", "height", "width", "boxes", "classes", "repeats"):
    parser.add_argument(f"--{name}", type=int, required=True)
  args = parser.parse_args()
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  for compiled in (False, True):
    print(json.dumps(measure(args, device, compiled)), flush=True)


def measure(args: argparse.Namespace, device: torch.device, compiled: bool) -> dict:
  torch.manual_seed(0)
  side = {"min_size": args.height, "max_size": args.width}  # the images have that size already
  model = retinanet_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=args.classes, trainable_backbone_layers=3, **side
  ).to(device, memory_format=torch.channels_last)
  images = [torch.rand(3, args.height, args.width, device=device) for _ in range(args.batch_size)]
  corner = torch.rand(args.boxes, 2) * 0.7
  boxes = torch.cat([corner, corner + 0.05 + 0.25 * torch.rand(args.boxes, 2)], 1)
  boxes = (boxes * torch.tensor([args.width, args.height] * 2)).to(device)
  labels = torch.randint(0, args.classes, (args.boxes,), device=device)
  targets = [{"boxes": boxes, "labels": labels} for _ in images]
  parameters = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=1e-4)
  if compiled:  # what torch.compile can take whole; matching and NMS depend on the data
    model.backbone = torch.compile(model.backbone)
    model.head = torch.compile(model.head)
  model.train(args.kind == "train")
  half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()

  def train():
    with half:
      loss = sum(model(images, targets).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  @torch.no_grad()
  def predict():
    with half:
      model(images)

  call = train if args.kind == "train" else predict
  wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
  warmup = 3
  seconds = []
  for _ in range(warmup + args.repeats):
    wait()
    start = time.perf_counter()
    call()
    wait()
    seconds.append(time.perf_counter() - start)
  timed = sorted(seconds[warmup:])
  median = timed[len(timed) // 2]
  return {
    "bench": args.kind, "piece": "torchvision, compiled" if compiled else "torchvision, eager",
    "model": "retinanet_r50", "batch_size": args.batch_size, "input_size": [args.height, args.width],
    "boxes": args.boxes, "classes": args.classes, "dtype": "bfloat16" if device.type == "cuda" else "float32",
    "warmup": warmup, "repeats": args.repeats, "first_call_s": seconds[0], "median_s": median,
    "spread_s": timed[(3 * len(timed)) // 4] - timed[len(timed) // 4],
    "images_per_second": args.batch_size / median,
    "device_memory_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    "torch": torch.__version__, "torchvision": torchvision.__version__,
  }  # fmt: skip


if __name__ == "__main__":
  main()
