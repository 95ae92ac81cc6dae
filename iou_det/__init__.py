"""RetinaNet in JAX/Flax with the IoU-balanced losses of arXiv:1908.05641."""
