"""What may be said of an outcome: the rules for any way, and what is right for pictures, by Pillow."""

import contextlib
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from tests.mutations.pictures import PNG, parts
from tests.mutations.ways import HANG, MEMORY, Outcome

Image.MAX_IMAGE_PIXELS = None
LONGEST_LINE = 4000
ANNOTATED = (48, 64)  # height, width
LARGE = 2**24  # pixels: Pillow is not asked
NOTE = "(no fault) "  # what begins so is worth a look
NOISE = {
  "libpng": "libpng's",
  "JPEG data": "libjpeg's",
  "@0.": "OpenCV's",
  "TIFF": "libtiff's",
  "Warning: ": "Pillow's",
}
LOG = re.compile(r"\d\d:\d\d:\d\d ")


def rules(o: Outcome) -> Iterator[str]:
  """Faults that no input excuses."""
  own = [line for line in o.errors.splitlines() if line.strip() and not LOG.match(line)]
  if o.hang:
    yield f"hang: more than {HANG} s"
  elif o.code < 0:
    yield f"signal {-o.code}"
  elif o.code not in (0, 2) or "Traceback (most recent call last)" in o.errors:
    yield f"traceback, exit code {o.code}: {innermost(o.errors)}"
  elif o.code == 2:
    if len(own) != 1:
      noise = next(
        (name for word, name in NOISE.items() if any(word in line for line in own)), own[0] if own else ""
      )
      yield f"{len(own)} lines in place of one: {noise}"
    elif not own[0].startswith(f"iou-det {'prepare' if o.way == 'skip_bad' else o.way}: "):
      yield f"the line does not begin with the command: {own[0]}"
    if any(len(line) > LONGEST_LINE for line in own):
      yield f"a line of {max(map(len, own))} characters"
    if any(not line.isprintable() for line in own):
      yield "characters in the line that cannot be printed"
    if o.came and o.way in ("prepare", "skip_bad"):
      yield f"refused, yet there is a dataset with {len(o.came)} splits"
  if o.mib > MEMORY:
    yield f"memory: {o.mib} MiB"
  if o.trouble:
    last = innermost(o.trouble) if "Traceback" in o.trouble else o.trouble
    yield f"what was written is not whole: {last}"


def innermost(text: str) -> str:
  """The error, and where in the package it arose."""
  lines = [line for line in text.splitlines() if line.strip()]
  places = re.findall(r'File ".*?/iou_det/([\w/]+\.py)", line \d+, in (\S+)', text)
  errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Warning|error)\b", line)]
  where = " in {}:{}".format(*places[-1]) if places else ""
  return f"{(errors or lines or ['no message'])[-1][:200]}{where}"


class Seen(NamedTuple):
  """A picture as Pillow sees it: as stored and upright; none if it refuses."""

  pixels: list[np.ndarray]
  error: str = ""  # "large": not asked
  tolerance: float = 0  # of the mean difference
  deep: np.ndarray | None = None  # values of more than 8 bits, for which there are several rules


def by_pillow(data: bytes) -> Seen:
  """What Pillow sees. It refuses PNGs for chunks that are not of the pixels, and is asked without those."""
  seen = look(data)
  if seen.error and data.startswith(PNG):
    found = [part for part in parts(data)[1:] if part[4:5].isupper() or part[4:8] in (b"tRNS", b"eXIf")]
    seen = look(PNG + b"".join(found))
  return seen


def look(data: bytes) -> Seen:
  ImageFile.LOAD_TRUNCATED_IMAGES = False
  try:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
      if image.width * image.height > LARGE:
        return Seen([], "large")
      rawmode = str(image.tile[0][3]) if image.tile else ""
      lossy = image.format in ("JPEG", "MPO", "WEBP") or "jpeg" in str(image.info.get("compression"))
      lossy &= b"VP8L" not in data[:100]
      tolerance = 12.0 if image.mode == "CMYK" else 3.0 if lossy else 0.0
      image.load()
      turned = [image]
      with contextlib.suppress(Exception):  # an EXIF block without sense is none
        turned.append(ImageOps.exif_transpose(image))
      if image.format == "TIFF":  # Pillow has turned it, and does not say how
        turned += [image.transpose(how) for how in Image.Transpose]
      if image.mode.startswith("I") or image.mode == "F":
        return Seen([], "", 2.0, np.asarray(image))
      if ";16" in rawmode:
        tolerance = 2.0
      if image.mode in ("YCbCr", "LAB", "HSV"):
        tolerance = 12.0
      return Seen([np.asarray(i.convert("RGB")) for i in turned], "", tolerance)
  except Exception as error:
    return Seen([], f"{type(error).__name__}: {error}"[:120] or "error")


def as_seen(pixels: np.ndarray, seen: Seen) -> bool:
  close = lambda other: np.abs(pixels.astype(float) - other).mean() <= seen.tolerance
  if seen.deep is not None:
    values = seen.deep.astype(float)
    if values.shape != pixels.shape[:2]:
      return values.T.shape == pixels.shape[:2]
    shown = [values.clip(0, 255)] + [values * 255 / (2**bits - 1) for bits in range(8, 17)]
    return any(close(grey[..., None].clip(0, 255)) for grey in shown)
  return any(pixels.shape == other.shape and close(other.astype(float)) for other in seen.pixels)


def judge_pictures(folder: Path, outcomes: list[Outcome]) -> Iterator[tuple[str, str]]:
  """Faults, each with its way. Right is what Pillow sees, or the picture as it was before it was changed."""
  path = next(p for p in (folder / "train").iterdir() if p.stem == "picture")
  data = next(folder.glob("original.*")).read_bytes()
  original = by_pillow(data)
  seen = by_pillow(path.read_bytes())
  there = {}
  for o in outcomes:
    for fault in rules(o):
      # What is wrong in a PNG of right checksums, decoding alone finds, and libpng tells the terminal, too.
      known = "libpng's" in fault and right_checksums(path.read_bytes())
      yield o.way, NOTE * known + fault
    if o.code not in (0, 2) or o.hang:
      continue
    pixels = {Path(name).stem: p for split in o.came.values() for name, p in split.pixels.items()}
    taken = there[o.way] = "picture" in pixels
    if "good" not in pixels and (o.code == 0 or o.way in ("predict", "skip_bad")):
      yield o.way, "the good picture is lost"
    if not taken:
      if o.code == 0 and o.way != "skip_bad":
        yield o.way, "left out in silence"
      if path.name not in o.errors + o.out:
        yield o.way, "refused or dropped, but not named"
      harmless = seen.pixels and original.pixels and np.array_equal(seen.pixels[0], original.pixels[0])
      if harmless and o.way != "skip_bad":
        yield o.way, f"{NOTE}refused, though Pillow sees the picture as it was: {reason(o.errors)}"
      if path.read_bytes() == data and not floats(seen) and o.way != "skip_bad":
        yield o.way, f"refused, though nothing is wrong: {reason(o.errors)}"
    elif pixels["picture"] is not None:
      yield from ((o.way, f) for f in wrong_pixels(pixels["picture"], seen, original, o.way))
  strict = {way: taken for way, taken in there.items() if way != "skip_bad"}
  if len(set(strict.values())) > 1 and not (strict.get("predict") and other_size(seen)):
    yield "all", "; ".join(f"{way} {'takes' if t else 'refuses'} it" for way, t in sorted(strict.items()))


def right_checksums(png: bytes) -> bool:
  chunks = [part for part in parts(png)[1:] if part[4:8] in (b"IHDR", b"PLTE", b"IDAT")]
  return all(zlib.crc32(part[4:-4]) == int.from_bytes(part[-4:]) for part in chunks)


def floats(seen: Seen) -> bool:
  """What these mean nobody knows: they may be refused."""
  return seen.deep is not None and seen.deep.dtype.kind == "f"


def other_size(seen: Seen) -> bool:
  """Then all but predict must refuse it."""
  return (bool(seen.pixels) and seen.pixels[0].shape[:2] != ANNOTATED) or seen.error != ""


def wrong_pixels(pixels: np.ndarray, seen: Seen, original: Seen, way: str) -> Iterator[str]:
  if way != "predict" and pixels.shape[:2] != ANNOTATED:
    yield f"taken with {pixels.shape[:2]} pixels, annotated {ANNOTATED}"
  if seen.error == "large" or as_seen(pixels, seen) or as_seen(pixels, original):
    return
  yield f"taken, though Pillow refuses it ({seen.error})" if seen.error else "other pixels than Pillow's"


def reason(errors: str) -> str:
  """The last line, without the path."""
  lines = errors.strip().splitlines()
  line = re.sub(r"\S*/\S*|\(it begins with [^)]*\)", "PATH", lines[-1]) if lines else ""
  return re.sub(r"^iou-det \w+: ", "", line)[:120]


def kind_of_fault(text: str) -> str:
  """Without numbers, paths and quotations: the same for the same fault of two inputs."""
  text = re.sub(r"\S*/(?!iou_det)\S*/\S*", "PATH", text)
  text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
  return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "N", text)[:220]
