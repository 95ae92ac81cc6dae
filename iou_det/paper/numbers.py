"""What arXiv:1908.05641 printed in its Tables 1 to 4: AP on COCO in percent, digits as printed.

Columns are named as in our metrics.json. The w_loc of Table 4 are `iou_det.config.W_LOC`.
"""

SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
IOUS = ("AP50", "AP60", "AP70", "AP80", "AP90")

# Table 1: test-dev, [800, 1333]; "both" are the IoU-balanced RetinaNets.
TABLE1: dict[str, dict[str, float]] = {
  "r50_baseline": dict(zip(SIZES, (35.9, 55.8, 38.4, 19.9, 38.8, 45.0), strict=True)),
  "r101_baseline": dict(zip(SIZES, (38.1, 58.5, 40.8, 21.2, 41.5, 48.2), strict=True)),
  "r50_both": dict(zip(SIZES, (37.0, 56.2, 39.7, 20.6, 39.8, 46.3), strict=True)),
  "r101_both": dict(zip(SIZES, (39.2, 58.7, 42.3, 21.5, 42.4, 49.4), strict=True)),
}

# Table 2: val-2017, R50, [600, 1000].
TABLE2: dict[str, dict[str, float]] = {
  "baseline": dict(zip(SIZES, (34.4, 53.9, 36.6, 17.2, 38.2, 48.0), strict=True)),
  "cls": dict(zip(SIZES, (35.1, 54.6, 37.5, 18.4, 38.5, 47.8), strict=True)),
  "loc": dict(zip(SIZES, (35.2, 53.7, 37.6, 17.9, 39.3, 48.5), strict=True)),
  "both": dict(zip(SIZES, (35.7, 54.3, 38.0, 17.7, 39.4, 48.8), strict=True)),
}

# Table 3: the runs of Table 2, AP at single IoUs.
TABLE3: dict[str, dict[str, float]] = {
  "baseline": dict(zip(IOUS, (53.9, 49.2, 41.9, 30.0, 11.2), strict=True)),
  "cls": dict(zip(IOUS, (54.6, 50.2, 42.7, 31.0, 11.4), strict=True)),
  "loc": dict(zip(IOUS, (53.7, 49.3, 42.3, 31.8, 13.1), strict=True)),
  "both": dict(zip(IOUS, (54.3, 50.0, 43.0, 32.1, 13.5), strict=True)),
}

# Table 4: val-2017, R50, [600, 1000]; one exponent at a time, the other part of the loss as in the baseline.
TABLE4: dict[tuple[str, float], dict[str, float]] = {
  ("eta", 0.0): {"AP": 34.4},
  ("eta", 1.0): {"AP": 34.7},
  ("eta", 1.4): {"AP": 35.0},
  ("eta", 1.5): {"AP": 35.1},
  ("eta", 1.6): {"AP": 34.9},
  ("lambd", 0.0): {"AP": 34.4},
  ("lambd", 0.5): {"AP": 35.0},
  ("lambd", 1.0): {"AP": 35.1},
  ("lambd", 1.5): {"AP": 35.2},
  ("lambd", 1.8): {"AP": 35.1},
}
