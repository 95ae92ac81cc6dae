"""Pure functions of arrays, which need JAX and jaxtyping alone and run under `jax.jit`, on any mesh.

Boxes are x1, y1, x2, y2 in pixels, x2 and y2 exclusive, float32. Offsets (deltas) are dx, dy, dw, dh of
`boxes.encode`. Losses are unreduced: masks, sums and normalisers are the caller's. Weights of losses carry no
gradient. Sums run over all leading axes: of a batch that is split over devices they are global, and do not
depend on the number of devices.
"""
