"""Files and folders that a user names: pictures and videos by content, the rest passed over or refused."""

import pytest

from iou_det.data.given import given_files
from iou_det.errors import UserError

MP4 = b"\0\0\0\x20ftypisom" + bytes(600)
CONTENT = {
  "a.mp4": MP4,
  "b without suffix": b"\x1aE\xdf\xa3" + bytes(600),
  "c.dat": b"RIFF\0\0\0\0AVI LIST" + bytes(600),
  "d.bin": b"\0\0\0\x08wide\0\0\0\0mdat" + bytes(600),
  "e.webm": b"<!doctype html>",  # damaged, not of another kind
}
OTHERS = {
  "sound.m4a": b"\0\0\0\x20ftypM4A " + bytes(600),
  "notes.txt": b"Fatfree and text",
  "song.wav": b"RIFF\0\0\0\0WAVEfmt " + bytes(600),
  ".hidden.mp4": MP4,
}
PICTURES = {"p.jpg": b"", "q": b"\x89PNG\r\n\x1a\n", "phone.heic": b"\0\0\0\x18ftypheic" + bytes(60)}


def test_what_is_in_a_folder(tmp_path):
  for name, data in (CONTENT | OTHERS | PICTURES).items():
    (tmp_path / name).write_bytes(data)
  given = given_files([str(tmp_path)])
  assert [p.name for p in given.videos] == sorted(CONTENT)
  assert [p.name for p in given.pictures] == sorted(PICTURES)
  assert given.passed == len(OTHERS)


def test_what_is_named_is_taken_in_the_order_named(tmp_path):
  for name, data in (CONTENT | OTHERS).items():
    (tmp_path / name).write_bytes(data)
  names = ["c.dat", "notes.txt", ".hidden.mp4", "a.mp4"]
  given = given_files([str(tmp_path / name) for name in names])
  assert [p.name for p in given.videos] == ["c.dat", ".hidden.mp4", "a.mp4"]
  assert [p.name for p in given.pictures] == ["notes.txt"] and not given.passed
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"no pictures or videos in it \(names in it: 0\)"):
    given_files([str(tmp_path / "empty")])
