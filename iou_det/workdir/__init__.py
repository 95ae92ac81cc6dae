"""A run's folder: config.json, checkpoints, metrics.jsonl; no file is half."""
