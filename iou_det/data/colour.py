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
  """`change_colour` by random amounts; a setting that is 0 leaves out its step.

  The factor of brightness, contrast and saturation is uniform in [max(0, 1 - b), 1 + b], b being the setting
  of that name, and the turn of the hue in [-hue, hue].

  Args:
    data: the config's section.
  """
  draws = jax.random.uniform(key, (4,))  # always four: a setting does not change another's draw

  def factor(b, u):
    return max(0.0, 1.0 - b) + (1.0 + b - max(0.0, 1.0 - b)) * u if b else None

  turns = data.hue * (2.0 * draws[3] - 1.0) if data.hue else None
  settings = (data.brightness, data.contrast, data.saturation)
  return change_colour(pixels, inside, *map(factor, settings, draws[:3]), turns)


def change_colour(
  pixels: Float[Array, "h w 3"],
  inside: Bool[Array, "h w"],
  brightness: Float[Array, ""] | None = None,
  contrast: Float[Array, ""] | None = None,
  saturation: Float[Array, ""] | None = None,
  hue: Float[Array, ""] | None = None,
) -> Float[Array, "h w 3"]:
  """An RGB image in 0..255 in other colours: torchvision's steps, clipped to 0..255; None leaves one out.

      brightness f    f p
      contrast f      f p + (1 - f) mean, over the content in grey: 0.2989 R + 0.587 G + 0.114 B
      saturation f    f p + (1 - f) grey, of the pixel
      hue t           turned by t turns of HSV's colour circle

  ColorJitter takes them in a random order; here it is this one.

  Args:
    inside: the image's content; what lies outside does not count for the mean.
  """
  grey = lambda p: (p * jnp.array(GREY)).sum(axis=-1, keepdims=True)
  blend = lambda p, other, f: jnp.clip(f * p + (1.0 - f) * other, 0.0, 255.0)
  if brightness is not None:
    pixels = blend(pixels, 0.0, brightness)
  if contrast is not None:
    pixels = blend(pixels, jnp.mean(grey(pixels), where=inside[..., None]), contrast)
  if saturation is not None:
    pixels = blend(pixels, grey(pixels), saturation)
  return pixels if hue is None else turn_hue(pixels, hue)


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
  # A channel is `chroma` below the value for two sixths of the circle round its complement, at the value for
  # two round its own place, and between them on the sixths between. Red begins to fall at one sixth (yellow).
  at = ((sixths + 6.0 * turns)[..., None] + jnp.array([5.0, 3.0, 1.0])) % 6.0
  short = jnp.clip(jnp.minimum(at, 4.0 - at), 0.0, 1.0)
  return value[..., None] - chroma[..., None] * short
