"""Measurements, one JSON line each: training, input, prediction, scoring, and how cost grows."""
