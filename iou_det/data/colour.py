"""Random brightness, contrast, saturation and hue of an image on the device: torchvision's ColorJitter."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

GREY = (0.2989, 0.587, 0.114)  # torchvision's shares of red, green, blue


def jitters_colour(data: ConfigDict) -> bool:
  """Whether any setting of `jitter_colour` is on."""
  return any((data.brightness, data.contrast, data.saturation, data.hue))


def jitter_colour(
  pixels: Float[Array, "h w 3"], inside: Bool[Array, "h w"], data: ConfigDict, key: Key[Array, ""]
) -> Float[Array, "h w 3"]:
  """The image, RGB in 0..255, in other colours; each setting that is 0 leaves out its step.

  As torchvision's ColorJitter (there the order is drawn, too), each step clipped to 0..255:

      brightness  f p                    f uniform in [max(0, 1 - b), 1 + b], b the setting of each of the
      contrast    f p + (1 - f) mean     three; mean: of the grey content
      saturation  f p + (1 - f) grey     grey: 0.2989 R + 0.587 G + 0.114 B of the pixel
      hue         turned by s            s uniform in [-hue, hue] turns of the colour circle (HSV)

  Args:
    inside: the image's content; what lies outside does not count for the mean.
    data: the config's section.
  """
  draws = jax.random.uniform(key, (4,))  # always four: a setting does not change another's draw
  settings = (data.brightness, data.contrast, data.saturation)
  factors = [
    max(0.0, 1.0 - b) + (1.0 + b - max(0.0, 1.0 - b)) * u for b, u in zip(settings, draws, strict=False)
  ]
  grey = lambda p: (p * jnp.array(GREY)).sum(axis=-1, keepdims=True)
  blend = lambda p, other, f: jnp.clip(f * p + (1.0 - f) * other, 0.0, 255.0)
  if data.brightness:
    pixels = blend(pixels, 0.0, factors[0])
  if data.contrast:
    mean = jnp.mean(grey(pixels), where=inside[..., None])
    pixels = blend(pixels, mean, factors[1])
  if data.saturation:
    pixels = blend(pixels, grey(pixels), factors[2])
  if data.hue:
    pixels = turn_hue(pixels, (2.0 * draws[3] - 1.0) * data.hue)
  return pixels


def turn_hue(pixels: Float[Array, "*image 3"], turns: Float[Array, ""]) -> Float[Array, "*image 3"]:
  """RGB with the same HSV saturation and value, and the hue `turns` further; grey stays as it is."""
  r, g, b = pixels[..., 0], pixels[..., 1], pixels[..., 2]
  value = pixels.max(axis=-1)
  chroma = value - pixels.min(axis=-1)
  per_chroma = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
  sixths = jnp.where(
    value == r,
    (g - b) * per_chroma,
    jnp.where(value == g, (b - r) * per_chroma + 2.0, (r - g) * per_chroma + 4.0),
  )
  # A channel falls short of the value by `chroma` for two sixths of the circle round its complement, less
  # within a sixth on both sides, and not at all round its own place.
  from_yellow = (sixths + 6.0 * turns)[..., None] + jnp.array([5.0, 3.0, 1.0])
  at = from_yellow % 6.0
  short = jnp.clip(jnp.minimum(at, 4.0 - at), 0.0, 1.0)
  return value[..., None] - chroma[..., None] * short
