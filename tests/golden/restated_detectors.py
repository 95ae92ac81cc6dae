"""RetinaNets of mmdetection and detectron2, stated again from their published definitions (needs torch)."""

import math
from collections import OrderedDict

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d, batched_nms, box_iou, sigmoid_focal_loss

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
STRIDES = (8, 16, 32, 64, 128)


class ConvModule(nn.Module):
  """mmcv's, without norm."""

  def __init__(self, *args, **options):
    super().__init__()
    self.conv = nn.Conv2d(*args, **options)

  def forward(self, x):
    return self.conv(x)


class MMDetection(nn.Module):
  """RetinaNet of configs/_base_/models/retinanet_r50_fpn.py."""

  def __init__(self, classes):
    super().__init__()
    self.backbone = torchvision.models.resnet50(weights=None)
    del self.backbone.fc
    self.neck = nn.ModuleDict({
      "lateral_convs": nn.ModuleList(ConvModule(c, 256, 1) for c in (512, 1024, 2048)),
      "fpn_convs": nn.ModuleList(
        [ConvModule(256, 256, 3, padding=1) for _ in range(3)]
        + [ConvModule(c, 256, 3, stride=2, padding=1) for c in (2048, 256)]
      ),
    })  # fmt: skip
    tower = lambda: nn.ModuleList(ConvModule(256, 256, 3, padding=1) for _ in range(4))
    self.bbox_head = nn.ModuleDict(
      {
        "cls_convs": tower(),
        "reg_convs": tower(),
        "retina_cls": nn.Conv2d(256, 9 * classes, 3, padding=1),
        "retina_reg": nn.Conv2d(256, 36, 3, padding=1),
      }
    )

  def forward(self, x):
    b = self.backbone
    x = b.maxpool(torch.relu(b.bn1(b.conv1(x))))
    maps = []
    for stage in (b.layer1, b.layer2, b.layer3, b.layer4):
      x = stage(x)
      maps.append(x)
    laterals = [conv(m) for conv, m in zip(self.neck["lateral_convs"], maps[1:], strict=True)]
    for i in (2, 1):
      laterals[i - 1] += F.interpolate(laterals[i], size=laterals[i - 1].shape[2:], mode="nearest")
    convs = self.neck["fpn_convs"]
    pyramid = [conv(m) for conv, m in zip(convs[:3], laterals, strict=True)]
    pyramid.append(convs[3](maps[-1]))
    pyramid.append(convs[4](pyramid[-1]))
    outputs = []
    for tower, last in (("cls_convs", "retina_cls"), ("reg_convs", "retina_reg")):
      levels = []
      for level in pyramid:
        for conv in self.bbox_head[tower]:
          level = torch.relu(conv(level))
        levels.append(self.bbox_head[last](level))
      outputs.append(levels)
    return outputs

  def cell_anchors(self, stride):
    """AnchorGenerator, scale_major, center_offset 0."""
    scales = torch.tensor([4 * 2 ** (i / 3) for i in range(3)])
    root = torch.sqrt(torch.tensor([0.5, 1.0, 2.0]))
    w, h = ((stride * r[:, None] * scales).view(-1) for r in (1 / root, root))
    return torch.stack([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h], dim=-1)


class ConvNorm(nn.Conv2d):
  """detectron2's Conv2d with its norm inside."""

  def __init__(self, *args, **options):
    super().__init__(*args, bias=False, **options)
    self.norm = FrozenBatchNorm2d(self.out_channels)

  def forward(self, x):
    return self.norm(super().forward(x))


class Bottleneck(nn.Module):
  """BottleneckBlock with STRIDE_IN_1X1."""

  def __init__(self, inputs, width, outputs, stride):
    super().__init__()
    self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride) if inputs != outputs else None
    self.conv1 = ConvNorm(inputs, width, 1, stride=stride)
    self.conv2 = ConvNorm(width, width, 3, padding=1)
    self.conv3 = ConvNorm(width, outputs, 1)

  def forward(self, x):
    y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
    return torch.relu(y + (self.shortcut(x) if self.shortcut else x))


class Detectron2(nn.Module):
  """RetinaNet of configs/COCO-Detection/retinanet_R_50_FPN_3x.yaml."""

  def __init__(self, classes):
    super().__init__()
    bottom_up, inputs = (
      OrderedDict(stem=nn.ModuleDict({"conv1": ConvNorm(3, 64, 7, stride=2, padding=3)})),
      64,
    )
    for stage, blocks in enumerate((3, 4, 6, 3)):
      layers = []
      for i in range(blocks):
        layers.append(Bottleneck(inputs, 64 << stage, 256 << stage, 2 if stage and not i else 1))
        inputs = 256 << stage
      bottom_up[f"res{stage + 2}"] = nn.Sequential(*layers)
    parts = {"bottom_up": nn.ModuleDict(bottom_up)}
    for level, channels in ((3, 512), (4, 1024), (5, 2048)):
      parts[f"fpn_lateral{level}"] = nn.Conv2d(channels, 256, 1)
      parts[f"fpn_output{level}"] = nn.Conv2d(256, 256, 3, padding=1)
    extra = {f"p{n}": nn.Conv2d(c, 256, 3, stride=2, padding=1) for n, c in ((6, 2048), (7, 256))}
    self.backbone = nn.ModuleDict(parts | {"top_block": nn.ModuleDict(extra)})
    tower = lambda: nn.Sequential(
      *[f() for _ in range(4) for f in (lambda: nn.Conv2d(256, 256, 3, padding=1), nn.ReLU)]
    )
    self.head = nn.ModuleDict(
      {
        "cls_subnet": tower(),
        "bbox_subnet": tower(),
        "cls_score": nn.Conv2d(256, 9 * classes, 3, padding=1),
        "bbox_pred": nn.Conv2d(256, 36, 3, padding=1),
      }
    )
    self.register_buffer("pixel_mean", MEAN.flip(0).view(3, 1, 1))
    self.register_buffer("pixel_std", torch.ones(3, 1, 1))

  def forward(self, x):
    b, body = self.backbone, self.backbone["bottom_up"]
    x = F.max_pool2d(torch.relu(body["stem"]["conv1"](x)), kernel_size=3, stride=2, padding=1)
    maps = {}
    for stage in (2, 3, 4, 5):
      x = maps[stage] = body[f"res{stage}"](x)
    merged = {5: b["fpn_lateral5"](maps[5])}
    for level in (4, 3):
      up = F.interpolate(merged[level + 1], scale_factor=2.0, mode="nearest")
      merged[level] = b[f"fpn_lateral{level}"](maps[level]) + up
    pyramid = [b[f"fpn_output{level}"](merged[level]) for level in (3, 4, 5)]
    pyramid.append(b["top_block"]["p6"](maps[5]))
    pyramid.append(b["top_block"]["p7"](torch.relu(pyramid[-1])))
    heads = (("cls_subnet", "cls_score"), ("bbox_subnet", "bbox_pred"))
    return [[self.head[last](self.head[tower](level)) for level in pyramid] for tower, last in heads]

  def cell_anchors(self, stride):
    """DefaultAnchorGenerator, offset 0: sizes outside, ratios inside."""
    anchors = []
    for size in (4 * stride * 2 ** (i / 3) for i in range(3)):
      for ratio in (0.5, 1.0, 2.0):
        w = math.sqrt(size**2 / ratio)
        h = ratio * w
        anchors.append([-w / 2, -h / 2, w / 2, h / 2])
    return torch.tensor(anchors)


class Restated:
  """Runs one of the two on a batch. Images are resized as floats, without OpenCV's and Pillow's rounding."""

  def __init__(self, model, size, canvas, *, bgr, std, forced_target):
    self.model, self.size, self.canvas = model.eval(), size, canvas
    self.bgr, self.std, self.forced_target = bgr, std, forced_target

  @torch.inference_mode()
  def __call__(self, pictures, targets):
    images, scales = [], []
    for picture in pictures:
      h, w = picture.shape[:2]
      factor = min(self.size[0] / min(h, w), self.size[1] / max(h, w))
      new = int(h * factor + 0.5), int(w * factor + 0.5)
      image = torch.from_numpy(picture).permute(2, 0, 1).float()
      image = F.interpolate(image[None], size=new, mode="bilinear", align_corners=False)[0]
      image = (image - MEAN[:, None, None]) / self.std[:, None, None]
      images.append(image.flip(0) if self.bgr else image)
      scales.append(torch.tensor([new[1] / w, new[0] / h] * 2))
    classes, offsets = self.model(pad(images, self.canvas))
    logits, deltas, anchors = [], [], []
    for stride, c, o in zip(STRIDES, classes, offsets, strict=True):
      rows, columns = c.shape[-2:]
      y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
      shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
      anchors.append((shifts + self.model.cell_anchors(stride)).view(-1, 4))
      for rows_of, x in ((logits, c), (deltas, o)):  # N, A * K, H, W -> N, H * W * A, K
        values = x.shape[1] // 9
        x = x.view(len(x), 9, values, rows, columns).permute(0, 3, 4, 1, 2)
        rows_of.append(x.reshape(len(x), -1, values))
    everything = {
      "logits": torch.cat(logits, 1),
      "deltas": torch.cat(deltas, 1),
      "anchors": torch.cat(anchors),
    }
    found = []
    for i, scale in enumerate(scales):
      candidates = []
      for level, delta, anchor in zip(logits, deltas, anchors, strict=True):
        scores = level[i].sigmoid().flatten()
        passing = torch.where(scores > 0.05)[0]
        best = scores[passing].topk(min(1000, len(passing)))[1]
        pairs = passing[best]
        place = pairs // level.shape[-1]
        boxes = decode(delta[i][place], anchor[place])
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, images[i].shape[2])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, images[i].shape[1])
        candidates.append((boxes / scale, scores[pairs], pairs % level.shape[-1]))
      boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
      keep = batched_nms(boxes, scores, labels, 0.5)[:100]
      found.append((boxes[keep], scores[keep], labels[keep]))
    scaled = [t | {"boxes": t["boxes"] * s} for t, s in zip(targets, scales, strict=True)]
    return everything | {"losses": self.losses(everything, scaled)}, found

  def losses(self, out, targets):
    """Focal and L1 loss, over the positives of the batch."""
    classification = localization = positives = 0.0
    for logits, deltas, target in zip(out["logits"], out["deltas"], targets, strict=True):
      iou = box_iou(target["boxes"], out["anchors"])
      best, matched = iou.max(dim=0)
      positive = best >= 0.5
      for row, overlaps in enumerate(iou):  # every box takes the anchors that it overlaps most
        forced = overlaps >= overlaps.max() * (1 - 1e-6)  # up to rounding, many may overlap it alike
        positive |= forced
        if self.forced_target == "box":
          matched[forced] = row
      counted = positive | (best < 0.4)
      wanted = torch.zeros_like(logits)
      wanted[positive, target["labels"][matched[positive]]] = 1
      classification += sigmoid_focal_loss(logits[counted], wanted[counted], reduction="sum")
      boxes, anchors = target["boxes"][matched[positive]], out["anchors"][positive]
      size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
      shift = (boxes[:, 2:] + boxes[:, :2] - anchors[:, 2:] - anchors[:, :2]) / 2 / anchor_size
      offsets = torch.cat([shift, torch.log(size / anchor_size)], dim=1)
      localization += (deltas[positive] - offsets).abs().sum()
      positives += positive.sum()
    return torch.stack([classification, localization]) / positives


def sizes_of(pyramid):
  return [tuple(x.shape[-2:]) for x in pyramid]


def decode(deltas, anchors):
  size = anchors[:, 2:] - anchors[:, :2]
  centre = anchors[:, :2] + 0.5 * size + deltas[:, :2] * size
  size = size * deltas[:, 2:].clamp(max=math.log(1000 / 16)).exp()
  return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=1)


def pad(images, canvas):
  out = torch.zeros(len(images), 3, *canvas)
  for row, image in zip(out, images, strict=True):
    row[:, : image.shape[1], : image.shape[2]] = image
  return out
