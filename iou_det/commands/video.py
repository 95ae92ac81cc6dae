"""Videos in and out, by PyAV, which has FFmpeg's libraries in it.

What is written is H.264 in MP4, which every browser and player shows. OpenCV's wheels have no encoder for
it; of those that they have, browsers show VP9 alone, which takes many times as long.
"""

import importlib
import json
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np

from iou_det.commands.found import Pen, See, Tally, rows
from iou_det.data.ahead import read_ahead
from iou_det.data.headers import VIDEO, other_kind
from iou_det.data.images import printable
from iou_det.data.pipeline import number_of_threads
from iou_det.detector import ImageDetections, Pixels
from iou_det.errors import UserError
from iou_det.parallel import progress_bar
from iou_det.storage import AnyPath, whole_file

QUALITY = {"crf": "20", "preset": "veryfast"}
BT709 = 1  # FFmpeg's number for these colours, which players take where nothing is said


class When(NamedTuple):
  """The time of a frame in ticks of its stream, from the first frame on."""

  start: int
  duration: int


class Frames:
  """The frames of a video file, which FFmpeg's threads decode ahead; it has one at least, or is a UserError.

  Attributes:
    number: of frames by the header; None: it does not tell.
    rate: mean number a second.
    times: of the frames that were given out, for their writer to take.
    untimed: frames without a time, or not after the one before: a usual distance behind that.
    damage: once all were given out, why they are not all or not whole; or "".
  """

  def __init__(self, path: Path, *, turn: bool = True) -> None:
    self.name = printable(path)
    try:
      file = path.open("rb")  # FFmpeg itself would see protocols in some names
      kind = other_kind(file.read(512))
      file.seek(0)
    except OSError as error:
      raise UserError(f"{self.name}: cannot be read ({error.strerror})") from None
    if kind != VIDEO:
      raise UserError(f"{self.name}: no video, but {kind}")
    if not find_spec("av"):
      raise UserError(f"{self.name}: a video, which needs PyAV: pip install -e '.[video]'")
    self.av = importlib.import_module("av")
    try:
      self.container = self.av.open(file)
    except self.av.error.FFmpegError as error:
      raise UserError(f"{self.name}: a damaged video, or cut short ({error.strerror})") from None
    self.stream = self.container.streams.best("video")
    if self.stream is None:
      raise UserError(f"{self.name}: a video file without pictures, or damaged")
    self.stream.thread_type = "AUTO"
    self.sound = bool(self.container.streams.audio)
    self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
    self.seconds = (self.container.duration or 0) / self.av.time_base
    self.number = self.stream.frames or round(self.seconds * self.rate) or None
    self.times: deque[When] = deque()
    self.untimed, self.undecoded, self.mended, self.error = 0, 0, 0, ""
    self.decoded = self._decode()
    first = next(self.decoded, None)
    if first is None:
      raise UserError(f"{self.name}: not one frame of the video can be decoded")
    self.first, self.turns = first, round(first.rotation / 90) % 4 if turn else 0

  def _decode(self) -> Iterator[Any]:
    packets = self.container.demux(self.stream)
    while True:
      try:
        packet = next(packets, None)
      except self.av.error.FFmpegError as error:
        self.error = error.strerror
        return
      if packet is None:
        return
      self.mended += packet.is_corrupt
      try:
        frames = packet.decode()
      except self.av.error.FFmpegError:  # others behind it are decoded, as players do
        self.undecoded += 1
        continue
      self.mended += sum(frame.is_corrupt for frame in frames)
      yield from frames

  def __iter__(self) -> Iterator[Any]:
    usual = max(1, round(1 / self.rate / self.stream.time_base))
    zero, latest, end, count = self.first.pts or 0, -1, 0, 0
    frame = self.first
    while frame is not None:
      start = end if frame.pts is None else frame.pts - zero
      if frame.pts is None or start <= latest:
        self.untimed += 1
        start = max(end, latest + 1)
      latest, end, count = start, start + (frame.duration or usual), count + 1
      self.times.append(When(start, frame.duration or usual))
      yield frame
      frame = next(self.decoded, None)
    self._judge(count, float(end * self.stream.time_base))

  def _judge(self, count: int, end: float) -> None:
    """Whether the frames are all that the header tells of; sound may be a little longer than they are."""
    room = max(2 / self.rate, 1.0 if self.sound else 0.1)
    facts = []
    if self.error or self.seconds - end > room:
      why = f" ({self.error})" if self.error else ""
      facts.append(f"ends at frame {count} ({end:.2f} s){why}, its header says {self.seconds:.2f} s")
    if self.undecoded or self.mended:
      facts.append(f"{self.undecoded + self.mended} damaged pieces of {count} frames")
    self.damage = "; ".join(facts)

  def pixels(self, frame: Any, name: str = "") -> Pixels:
    """RGB, turned as a player shows it."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self.turns))


class Writer:
  """An MP4 file of frames that are shown when those of another video are."""

  def __init__(self, file: BinaryIO, like: Frames) -> None:
    self.av, self.like, self.unit = like.av, like, like.stream.time_base  # the container may count otherwise
    self.container = self.av.open(file, "w", format="mp4")
    self.stream: Any = None
    self.resized = 0

  def frame(self, picture: Pixels) -> Any:
    """For `write`; any number of threads make them. Sides must be even: the last row or column is doubled."""
    height, width = picture.shape[:2]
    even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return self.av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
      format="yuv420p", dst_colorspace="ITU709"
    )

  def write(self, frame: Any, when: When) -> None:
    if self.stream is None:
      self.stream = self._start(frame.width, frame.height)
    if (frame.width, frame.height) != (self.stream.width, self.stream.height):  # it changed on the way
      self.resized += 1
      frame = frame.reformat(self.stream.width, self.stream.height)
    frame.pts, frame.duration, frame.time_base = *when, self.unit
    self.container.mux(self.stream.encode(frame))

  def _start(self, width: int, height: int) -> Any:
    stream = self.container.add_stream("libx264", rate=self.like.rate, options=QUALITY)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.time_base = stream.codec_context.time_base = self.unit
    for name in ("colorspace", "color_primaries", "color_trc"):
      setattr(stream.codec_context, name, BT709)
    stream.codec_context.color_range = 1  # the usual one, not all of 0 to 255
    if ratio := self.like.stream.sample_aspect_ratio:  # pixels that are no squares
      stream.codec_context.sample_aspect_ratio = 1 / ratio if self.like.turns % 2 else ratio
    return stream

  def close(self) -> None:
    self.container.mux(self.stream.encode())
    self.container.close()


class Target(NamedTuple):
  """Where a video and its rows are written to."""

  video: AnyPath
  lines: AnyPath


def outputs(folder: AnyPath, stem: str) -> Target:
  """Those in a folder; a UserError where something is, as that took long to make."""
  target = Target(folder / f"{stem}.mp4", folder / f"{stem}.jsonl")
  for path in target:
    if path.exists():
      raise UserError(f"{path} is there already; give another --out, or remove it")
  return target


def annotate(frames: Frames, see: See, pen: Pen, to: Target) -> tuple[str, list[str]]:
  """Writes a video with detections and one JSON line a frame; returns what was done, and what is odd in it.

  Frames are read, seen, drawn and written at the same time, few of them held.
  """
  tally, begun, count, threads = Tally(pen.score), perf_counter(), 0, number_of_threads(0)
  to.video.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(to.video) as video, whole_file(to.lines) as lines:
    writer = Writer(video, frames)

    def draw(seen: tuple[Pixels, ImageDetections], name: str) -> tuple[Any, ImageDetections]:
      return writer.frame(pen.draw(*seen)), seen[1]

    bar = progress_bar(total=frames.number, unit="frame", desc=Path(frames.name).name)
    with bar:
      for count, drawn in enumerate(read_ahead(see(frames, frames.pixels), draw, threads, 2 * threads), 1):
        assert not isinstance(drawn, UserError)  # a decoded frame always has pixels
        when = frames.times.popleft()
        writer.write(drawn[0], when)
        tally.add(drawn[1])
        row = {"frame": count - 1, "time": round(float(when.start * frames.stream.time_base), 6)}
        lines.write((json.dumps(row | {"detections": rows(drawn[1])}) + "\n").encode())
        bar.update()
    writer.close()
  odd = {
    "videos with sound, which is not copied": frames.sound,
    "videos turned as they say": frames.turns > 0,
    "frames without a time of their own": frames.untimed,
    "frames of another size than the first, shown at its size": writer.resized,
  }
  speed = count / (perf_counter() - begun)
  return f"{count} frames, {tally}, {speed:.1f} frames/s", [what for what, n in odd.items() for _ in range(n)]
