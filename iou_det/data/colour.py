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

  return change_colour(
    pixels,
    inside,
    brightness=factor(data.brightness, draws[0]),
    contrast=factor(data.contrast, draws[1]),
    saturation=factor(data.saturation, draws[2]),
    hue=data.hue * (2.0 * draws[3] - 1.0) if data.hue else None,
  )


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
  grey = lambda p: (GREY[0] * p[..., 0] + GREY[1] * p[..., 1] + GREY[2] * p[..., 2])[..., None]
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
  # Channel by channel: several times faster on CPUs than reductions over three.
  r, g, b = pixels[..., 0], pixels[..., 1], pixels[..., 2]
  value = jnp.maximum(jnp.maximum(r, g), b)
  chroma = value - jnp.minimum(jnp.minimum(r, g), b)
  per_chroma = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
  sixths = jnp.where(
    value == r,
    (g - b) * per_chroma,
    jnp.where(value == g, (b - r) * per_chroma + 2.0, (r - g) * per_chroma + 4.0),
  )

  def channel(start):
    # `chroma` below the value for two sixths of the circle round its complement, at the value for two round
    # its own place, and between them on the sixths between. Red begins to fall at one sixth (yellow).
    at = sixths + 6.0 * turns + start
    at = at - 6.0 * jnp.floor(at / 6.0)
    return value - chroma * jnp.clip(jnp.minimum(at, 4.0 - at), 0.0, 1.0)

  return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
