"""Fonts: found by their letters among those of the machine, which here are ours, made of boxes."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, newTable
from matplotlib import font_manager, get_data_path

from iou_det import fonts
from iou_det.commands.drawing import draw_detections, drawable_names
from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.paper.output import Output, Plot
from iou_det.paper.plots import legend_above
from tests.command import iou_det


def box_font(letters, height=700):
  """Each letter is a black box, 1 em wide and `height` / 1000 em high; .notdef has no look."""
  builder = FontBuilder(1000, isTTF=True)
  pen = TTGlyphPen(None)
  pen.moveTo((0, 0))
  for corner in ((0, height), (1000, height), (1000, 0)):
    pen.lineTo(corner)
  pen.closePath()
  names = [f"u{ord(letter):X}" for letter in letters]
  builder.setupGlyphOrder([".notdef", *names])
  builder.setupCharacterMap(dict(zip(map(ord, letters), names, strict=True)))
  builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, pen.glyph())})
  builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
  builder.setupHorizontalHeader(ascent=800, descent=-200)
  builder.setupNameTable({"familyName": f"Boxes {ord(letters[0]):X}", "styleName": "Regular"})
  builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
  builder.setupPost()
  return builder.font


@pytest.fixture
def system(tmp_path, monkeypatch):
  """Has the machine just the fonts of a folder: {file name: font}."""

  def has(**files):
    for name, font in files.items():
      path = tmp_path / name.replace("_", ".")
      font.save(path) if hasattr(font, "save") else path.write_bytes(font)
    found = [str(path) for path in tmp_path.iterdir()]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    forget()
    return tmp_path

  yield has
  forget()


def forget():
  for cached in (fonts.runs, fonts._system, fonts._collection, fonts._letters):
    cached.cache_clear()


def faces(text, first=None):
  return [(piece, face and face.path.rsplit("/")[-1]) for piece, face in fonts.runs(text, first)]


@pytest.mark.parametrize(
  "name",
  [
    "\u7ea2\u7ec6\u80de",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f98a",
    "\ud55c\uae00",
    "\u0e41\u0e21\u0e27",
  ],
)
def test_a_font_of_the_machine_that_has_the_letters(system, name):
  system()
  assert fonts.lacking(name)
  system(
    Bold_ttf=box_font(name), A_Regular_ttf=box_font(name), Z_Italic_ttf=box_font(name), B_ttf=box_font("x")
  )
  assert faces(name) == [(name, "A.Regular.ttf")]
  assert fonts.lacking(name) == ""


def test_letters_of_several_fonts_and_the_fewest_pieces(system):
  system(A_ttf=box_font("\u7ea2"), B_ttf=box_font("\u7ea2 Kafer\u7ec6"))
  assert faces("Kafer") == [("Kafer", "DejaVuSans.ttf")]
  assert faces("Kafer \u7ea2") == [("Kafer \u7ea2", "B.ttf")]
  assert faces("\u7ea2 \u0439\U0001f98a") == [
    ("\u7ea2 ", "B.ttf"),
    ("\u0439", "DejaVuSans.ttf"),
    ("\U0001f98a", None),
  ]
  assert faces("\u0439\u200d\ufe0f") == [("\u0439\u200d\ufe0f", "DejaVuSans.ttf")]  # joiners need no look


def test_a_face_of_a_collection(system):
  collection = TTCollection()
  collection.fonts = [box_font("x"), box_font("\u7ea2")]
  system(C_ttc=collection)
  ((_, face),) = fonts.runs("\u7ea2")
  assert face.path.endswith("C.ttc") and face.index == 1
  assert fonts.load(face, 20).getlength("\u7ea2\u7ea2") == 40


def test_fonts_of_placeholders_of_colours_and_broken_ones_are_passed_over(system):
  coloured = box_font("\u7ea2")
  coloured["sbix"] = newTable("sbix")
  folder = system(A_ttf=b"no font", B_ttc=b"ttcf", Emoji_ttf=coloured)
  with open(f"{get_data_path()}/fonts/ttf/LastResortHE-Regular.ttf", "rb") as file:
    system(LastResort_ttf=file.read())
  assert fonts.lacking("a\u7ea2") == "\u7ea2"
  for path in (folder / "A.ttf", folder / "nowhere.ttf"):
    with pytest.raises(UserError, match=r"--font=.*is no font that can be read"):
      fonts.check_font(str(path), "font")
  with pytest.raises(UserError, match="has no outlines"):
    fonts.check_font(str(folder / "Emoji.ttf"), "font")


NAMES = [Category(1, "cell"), Category(3, "\u7ea2\u7ec6"), Category(7, "a\nb \x1b")]


def test_classes_without_a_font_are_drawn_by_their_id(system, caplog):
  system()
  assert drawable_names(NAMES) == ["cell", "id 3", r"a b \x1b"]
  (record,) = caplog.records
  assert "no font of this machine has \u7ea2\u7ec6: 1 of 3 classes" in record.getMessage()
  assert "\u7ea2\u7ec6 (id 3); give a font" in record.getMessage()
  folder = system(A_ttf=box_font("\u7ea2"), B_ttf=box_font("\u7ec6"))
  assert drawable_names(NAMES)[1] == "\u7ea2\u7ec6" and len(caplog.records) == 1
  assert str(folder) in fonts.runs("\u7ea2")[0][1].path


def drawn(name, score=0.5, font=None):
  """Share of a label in ink: black or white."""
  blank = np.full((640, 640, 3), 90, np.uint8)
  box = np.float32([[100, 300, 500, 500]])
  picture = draw_detections(blank, box, np.int32([0]), np.float32([score]), [name], font=font)
  label = picture[:300][(picture[:300] != 90).any(axis=-1)]
  return (label == 0).all(axis=-1).sum() + (label == 255).all(axis=-1).sum()


def test_letters_are_drawn_by_the_font_that_has_them(system):
  folder = system(A_ttf=box_font("\u7ea2"), B_ttf=box_font("\u7ec6", height=350))
  nothing, size = drawn(""), 16
  assert drawn("\u7ea2") - nothing == pytest.approx(0.7 * size**2, rel=0.15)
  assert drawn("\u7ea2\u7ec6\u7ea2") - nothing == pytest.approx((0.7 + 0.35 + 0.7) * size**2, rel=0.15)
  box_font("cl").save(folder / "given.ttf")
  given = str(folder / "given.ttf")
  fonts.check_font(given, "font")
  assert drawn("cl", font=given) - nothing == pytest.approx(2 * 0.7 * size**2, rel=0.15)
  assert drawn("cl") - nothing < 0.5 * size**2


def test_predict_takes_a_font(reference, tmp_path):
  (tmp_path / "a.ttf").write_text("no font")
  images = [f"--out={tmp_path}/out", "--split=val", "--limit=1"]
  done = iou_det("predict", f"--workdir={reference[0]}", f"--font={tmp_path}/a.ttf", *images)
  assert done.returncode == 2 and done.stderr.startswith(
    f"iou-det predict: --font={tmp_path}/a.ttf is no font"
  )
  box_font("rectangl").save(tmp_path / "a.ttf")
  done = iou_det("predict", f"--workdir={reference[0]}", f"--font={tmp_path}/a.ttf", *images)
  assert done.returncode == 0, done.stderr


def test_plots_have_the_letters_of_names(system, tmp_path):
  def shown():
    plot = Plot(Output(tmp_path / "plots", "", "make it"), "plot", "runs/$\\frac", "How.")
    with warnings.catch_warnings(), plot.panels(3.0) as (axis,):
      warnings.simplefilter("error")  # matplotlib's, of letters that are missing
      axis.bar([1], [2], label="\u7ea2\u7ec6 a\x1b")
      legend_above(axis)
    return (tmp_path / "plots/plot.svg").read_text(encoding="utf-8")

  system()
  assert r"\u7ea2\u7ec6 a\x1b" in shown()
  system(A_ttf=box_font("\u7ea2\u7ec6"))
  text = shown()
  assert "\u7ea2\u7ec6 a\\x1b" in text and "Boxes 7EA2" in text and "runs/$\\frac" in text
