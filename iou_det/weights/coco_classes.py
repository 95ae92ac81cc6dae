"""The category table of COCO detection: 80 classes, whose ids are the places in a list of 91 with gaps."""

from iou_det.data.source import Category

NONE = "N/A"  # an id without a class
NAMES = (
  "__background__", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
  "traffic light", "fire hydrant", NONE, "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse",
  "sheep", "cow", "elephant", "bear", "zebra", "giraffe", NONE, "backpack", "umbrella", NONE, NONE, "handbag",
  "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
  "skateboard", "surfboard", "tennis racket", "bottle", NONE, "wine glass", "cup", "fork", "knife", "spoon",
  "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
  "chair", "couch", "potted plant", "bed", NONE, "dining table", NONE, NONE, "toilet", NONE, "tv", "laptop",
  "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", NONE,
  "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COCO_91 = tuple(Category(i, name) for i, name in enumerate(NAMES))
COCO_80 = tuple(c for c in COCO_91[1:] if c.name != NONE)
