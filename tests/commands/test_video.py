"""`iou-det predict` on videos: frames, times and turns as FFmpeg and OpenCV say; damage is named."""

import errno
import json
import resource
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from iou_det.commands import video
from iou_det.commands.found import Pen
from iou_det.detector import ImageDetections
from iou_det.errors import UserError
from iou_det.weights.load import load_detector
from tests.command import iou_det

FRAMES = 12


def picture(i, height=64, width=96):
  """Corners of four colours, some noise, and a white bar that tells the number."""
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[: height // 2, : width // 2, 0] = pixels[: height // 2, width // 2 :, 1] = 200
  pixels[height // 2 :, : width // 2, 2] = pixels[height // 2 :, width // 2 :] = 90
  pixels += np.random.default_rng(i).integers(0, 20, pixels.shape, np.uint8)
  pixels[height // 2 - 8 : height // 2 + 8, 8 : 12 + 4 * i] = 255
  return pixels


def write_video(
  path,
  *,
  codec="libx264",
  times=range(FRAMES),
  rate=25,
  turn=0,
  sound=False,
  size=(64, 96),
  colours="yuv420p",
  **options,
):
  """By PyAV; `times` in units of 1/rate."""
  with av.open(str(path), "w", options={k: str(v) for k, v in options.items()}) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width, stream.pix_fmt = *size, colours
    stream.codec_context.gop_size = 4
    if turn:
      stream.set_display_rotation(turn)
    voice = container.add_stream("aac", rate=44100) if sound else None
    for i, time in enumerate(times):
      frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
      frame.pts, frame.time_base = time, Fraction(1, rate)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
    if voice:
      quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
      quiet.rate = 44100
      container.mux(voice.encode(quiet))
      container.mux(voice.encode())
  return path


def by_opencv(path):
  """Frames as a player shows them: turned; and their times in ms."""
  capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
  frames, times = [], []
  while (read := capture.read())[0]:
    frames.append(read[1][..., ::-1])
    times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
  return frames, np.array(times)


def bar(pixels):
  """The number that the bar of a frame tells."""
  height, width = pixels.shape[:2]
  row = pixels[height // 2, :, :].min(axis=-1).astype(int) > 200
  return round((row.sum() * 96 / width - 4) / 4)


def see(images, read):
  """In place of a detector: one box, the score of which is the frame's number / 100."""
  for image in images:
    pixels = read(image, "")
    one = np.array([bar(pixels) / 100], np.float32)
    box = np.array([[1, 2, 11, 22]], np.float32)
    yield pixels, ImageDetections(box, one, np.zeros(1, np.int32), np.full(1, 7), ["cat"])


def annotate(path):
  frames, folder = video.Frames(path), path.parent / "out"
  to = video.outputs(folder, path.stem)
  done, odd = video.annotate(frames, see, Pen(["cat"], 0.99, None), to)
  lines = [json.loads(line) for line in to.lines.read_text().splitlines()]
  return frames, done, odd, lines, *by_opencv(to.video)


KINDS = {
  "a.mp4": {},
  "a.mov": {},
  "a.mkv": {},
  "a.webm": {"codec": "libvpx-vp9"},
  "a.avi": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_of_every_kind_comes_once_in_order_at_its_time(tmp_path, name):
  path = write_video(tmp_path / name, **KINDS[name])
  frames, done, odd, lines, drawn, times = annotate(path)
  assert (frames.damage, odd) == ("", []) and done.startswith(f"{FRAMES} frames, {FRAMES} detections")
  assert [line["frame"] for line in lines] == list(range(FRAMES))
  np.testing.assert_allclose([line["time"] for line in lines], np.arange(FRAMES) / 25, atol=1e-3)
  for i, line in enumerate(lines):
    (row,) = line["detections"]
    assert row == {"class": "cat", "category_id": 7, "score": pytest.approx(i / 100), "bbox": [1, 2, 10, 20]}
  assert [bar(frame) for frame in drawn] == list(range(FRAMES))
  np.testing.assert_allclose(times, np.arange(FRAMES) * 40, atol=1)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_a_video_longer_than_the_encoder_looks_ahead_keeps_its_times(tmp_path, name):
  """The container counts in units of its own from its first packet on."""
  path = write_video(tmp_path / name, times=range(60), **KINDS[name])
  frames, _, _, lines, drawn, times = annotate(path)
  assert len(lines) == len(drawn) == 60 and not frames.damage
  np.testing.assert_allclose(times, np.arange(60) * 40, atol=1)


def test_what_is_written_is_what_browsers_play_at_the_colours_given(tmp_path):
  path = write_video(tmp_path / "a.mp4")
  _, _, _, _, drawn, _ = annotate(path)
  with av.open(str(tmp_path / "out/a.mp4")) as container:
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert stream.codec_context.colorspace == 1 and stream.average_rate == 25
  expected = cv2.resize(picture(3), drawn[3].shape[1::-1], interpolation=cv2.INTER_CUBIC)
  for y in (40, -200):  # blocks in the four corners, without the bar
    for x in (40, -300):
      block = np.s_[y : y + 140, x : x + 260]
      np.testing.assert_allclose(drawn[3][block].mean((0, 1)), expected[block].mean((0, 1)), atol=4)


def test_times_that_are_not_even_are_kept(tmp_path):
  times = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61, 100]
  path = write_video(tmp_path / "a.mp4", times=times)
  _, _, odd, lines, drawn, shown = annotate(path)
  np.testing.assert_allclose([line["time"] for line in lines], np.array(times) / 25, atol=1e-6)
  np.testing.assert_allclose(shown, np.array(times) * 40, atol=1)
  assert not odd and len(drawn) == FRAMES


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_phone_s_video_is_turned_as_a_player_turns_it(tmp_path, turn):
  path = write_video(tmp_path / "a.mp4", turn=turn)
  frames = video.Frames(path)
  expected, _ = by_opencv(path)
  ours = [frames.pixels(frame) for frame in frames]
  assert ours[0].shape == ((96, 64, 3) if turn % 180 else (64, 96, 3))
  assert len(ours) == FRAMES
  for a, b in zip(ours, expected, strict=True):
    assert np.abs(a.astype(int) - b).mean() < 3
  stored = video.Frames(path, turn=False)
  assert stored.pixels(stored.first).shape == (64, 96, 3)


def test_odd_sides_and_sound(tmp_path):
  path = write_video(tmp_path / "odd.mkv", times=range(3), size=(333, 651), colours="yuv444p")
  drawn = annotate(path)[4]
  assert [frame.shape for frame in drawn] == [(334, 652, 3)] * 3
  loud = write_video(tmp_path / "loud.mp4", sound=True)
  frames, _, odd, *_ = annotate(loud)
  assert odd == ["videos with sound, which is not copied"] and not frames.damage
  with av.open(str(tmp_path / "out/loud.mp4")) as container:
    assert not container.streams.audio


def cut(path, share):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  return path


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.mp4", {"movflags": "faststart"})])
def test_of_a_video_that_is_cut_short_what_is_there_is_written(tmp_path, name, options):
  path = cut(write_video(tmp_path / name, times=range(0, 120, 10), **options), 0.6)
  frames, done, _, lines, drawn, _ = annotate(path)
  assert 1 < len(lines) == len(drawn) < FRAMES and done.startswith(f"{len(lines)} frames")
  assert f"ends at frame {len(lines)} (" in frames.damage and "its header says 4." in frames.damage
  whole = len(lines) - 1  # of the last there may be a part alone
  assert [bar(frame) for frame in drawn[:whole]] == list(range(whole))


def test_damaged_pieces_are_counted_and_what_follows_is_written(tmp_path):
  path = write_video(tmp_path / "a.mp4", times=range(40), movflags="faststart")
  data = bytearray(path.read_bytes())
  data[len(data) // 2 : len(data) // 2 + len(data) // 10] = b"\xff" * (len(data) // 10)
  path.write_bytes(data)
  frames, _, _, lines, drawn, _ = annotate(path)
  assert "damaged pieces of" in frames.damage and len(lines) == len(drawn)
  assert len(lines) > 20


def nothing(path):
  path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(900))


@pytest.mark.parametrize(
  ("name", "make", "message"),
  [
    ("a.mp4", lambda path: cut(write_video(path), 0.5), "a damaged video, or cut short"),
    ("a.mp4", nothing, "a.mp4: "),
    ("a.mp4", lambda path: path.write_text("<!doctype html>"), "no video, but an HTML page"),
    ("a.mkv", lambda path: path.write_bytes(write_video(path).read_bytes()[:200]), "a.mkv: "),
  ],
)
def test_what_has_no_frames_is_one_line(tmp_path, name, make, message):
  make(tmp_path / name)
  with pytest.raises(UserError, match=message) as refused:
    video.Frames(tmp_path / name)
  assert "\n" not in str(refused.value)


def test_without_pyav_it_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setattr(video, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"a video, which needs PyAV: pip install -e '\.\[video\]'"):
    video.Frames(write_video(tmp_path / "a.mp4"))


def test_a_full_disk_ends_it_with_an_error_that_names_the_file_and_leaves_nothing_half(tmp_path):
  path = write_video(tmp_path / "a.mp4")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
  try:
    with pytest.raises(OSError, match=r"out/a\.(mp4|jsonl)") as refused:
      annotate(path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert refused.value.errno == errno.EFBIG
  assert list((tmp_path / "out").iterdir()) == []


def test_pictures_and_videos_of_a_folder_as_a_user_gives_them(reference, tmp_path):
  folder, out = tmp_path / "brought", tmp_path / "out"
  folder.mkdir()
  whole = write_video(folder / "b.mp4", sound=True)
  cut(write_video(folder / "c.mkv", times=range(0, 120, 10)), 0.6)
  (folder / "d.mp4").write_text("<!doctype html>")
  (folder / "notes.txt").write_text("text")
  cv2.imwrite(str(folder / "a.png"), picture(3)[..., ::-1])
  arguments = [
    "predict",
    f"--workdir={reference[0]}",
    f"--out={out}",
    "--score=0.9",
    "--batch_size=8",
    folder,
  ]
  done = iou_det(*arguments)
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert "1 of 4 files cannot be read: " in last and "d.mp4: no video, but an HTML page" in last
  assert (
    "1 videos are damaged: " in last and "c.mkv: ends at frame " in last and "Traceback" not in done.stderr
  )
  assert "videos with sound, which is not copied: 1" in done.stdout and " frames/s; " in done.stdout
  names = ["00001_a.png", "00002_b.jsonl", "00002_b.mp4", "00003_c.jsonl", "00003_c.mp4"]
  assert sorted(p.name for p in out.iterdir()) == [*names, "contact_sheet.png", "detections.json"]

  frames, _ = by_opencv(whole)
  detector = load_detector(reference[0], batch_size=8)
  lines = [json.loads(line) for line in (out / "00002_b.jsonl").read_text().splitlines()]
  for line, found in zip(lines, detector([np.ascontiguousarray(f) for f in frames]), strict=True):
    ours = [row["score"] for row in line["detections"]]
    np.testing.assert_allclose(ours, found.scores, atol=5e-3)  # decoders round colours in their own ways
    assert len(ours)

  again = iou_det(*arguments)
  assert again.returncode == 2 and "00002_b.mp4 is there already; give another --out" in again.stderr
  wrong = iou_det(*arguments[:2], f"--out={tmp_path / 'x.mp4'}", whole)
  assert wrong.returncode == 2 and "what is written gets a folder" in wrong.stderr
  tiled = iou_det(*arguments[:2], f"--out={tmp_path / 'tiled'}", "--tile=48,overlap=0.25", whole)
  assert tiled.returncode == 0, tiled.stderr
  assert len((tmp_path / "tiled/00001_b.jsonl").read_text().splitlines()) == FRAMES
  assert not (tmp_path / "tiled/detections.json").exists()
  bad = iou_det(*arguments[:2], f"--out={tmp_path / 'bad'}", "--tile=640x480", whole)
  assert bad.returncode == 2 and "--tile=640x480: give SIZE[,overlap=SHARE]" in bad.stderr
