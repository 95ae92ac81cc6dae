"""Tables: Markdown that lines up, CSV that reads back; the paper's numbers agree with each other."""

import csv

import numpy as np
import pytest

from iou_det.paper import numbers
from iou_det.paper.tables import write_csv, write_table

COLUMNS = ["run", "AP", "difference", "images", "hours"]
ROWS = [
  ["baseline", 34.449, None, 50, "1|2"],
  ["both", 9.1, 1 / 3, 5000, None],
  ["loc", -0.04, -2.0, 1, "a\nb"],
]
COMMAND = "iou-det reproduce table2 --preset shapes"
STAMP = "smoke, not a result"


def write(folder, **more):
  settings = {"caption": "AP in percent.", "command": COMMAND, "formats": {"difference": "+.2f"}}
  return write_table(folder / "table_1.5", COLUMNS, ROWS, **(settings | more))


def test_markdown(tmp_path):
  text = write(tmp_path, stamp=STAMP)
  assert text == (tmp_path / "table_1.5.md").read_text()
  assert text.split("\n") == [
    "**smoke, not a result**",
    "",
    "AP in percent.",
    "",
    "| run      |   AP | difference | images | hours |",
    "| -------- | ---: | ---------: | -----: | ----- |",
    "| baseline | 34.4 |          - |     50 | 1\\|2  |",
    "| both     |  9.1 |      +0.33 |   5000 | -     |",
    "| loc      |  0.0 |      -2.00 |      1 | a b   |",
    "",
    "Made by `iou-det reproduce table2 --preset shapes`",
    "",
  ]
  assert "smoke" not in write(tmp_path)


@pytest.mark.parametrize("stamp", ["", STAMP])
def test_csv_reads_back(tmp_path, stamp):
  write(tmp_path, stamp=stamp)
  with (tmp_path / "table_1.5.csv").open(newline="") as file:
    header, *rows = csv.reader(file)
  if stamp:
    assert [header.pop(), *[row.pop() for row in rows]] == ["stamp", *[stamp] * 3]
  assert header == COLUMNS
  kinds = (str, float, float, int, str)
  back = [[kind(cell) if cell else None for kind, cell in zip(kinds, row, strict=True)] for row in rows]
  assert back == ROWS


def test_csv_keeps_every_digit_of_numpy_floats(tmp_path):
  values = np.random.default_rng(0).normal(size=50) * 10.0 ** np.arange(-25, 25)
  write_csv(tmp_path / "x.csv", ["x"], [[value] for value in values])
  with (tmp_path / "x.csv").open() as file:
    back = [float(row["x"]) for row in csv.DictReader(file)]
  np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"rows": [["a"]]}, r"row 0 has 1 cells for 2 columns \['run', 'AP'\]"),
    ({"rows": [["a", 1.0], ["b", float("nan")]]}, "row 1, column 'AP' is nan; give None"),
    ({"columns": ["AP", "AP"]}, r"named twice: \['AP'\]"),
    ({"formats": {"ap": ".1f"}}, r"formats for \['ap'\], which are no columns"),
  ],
)
def test_bad_tables_are_refused(tmp_path, change, message):
  table = {"columns": ["run", "AP"], "rows": [["a", 1.0]], "caption": "c", "command": "x"} | change
  with pytest.raises(ValueError, match=message):
    write_table(tmp_path / "t", **table)
  assert not list(tmp_path.iterdir())


def test_the_papers_tables_agree_where_they_print_the_same_run():
  for run in numbers.TABLE2:
    assert numbers.TABLE2[run]["AP50"] == numbers.TABLE3[run]["AP50"]
  ap = {run: row["AP"] for run, row in numbers.TABLE2.items()}
  four = {setting: row["AP"] for setting, row in numbers.TABLE4.items()}
  assert ap["baseline"] == four["eta", 0.0] == four["lambd", 0.0]
  assert ap["cls"] == four["eta", 1.5] == max(v for (name, _), v in four.items() if name == "eta")
  assert ap["loc"] == four["lambd", 1.5] == max(v for (name, _), v in four.items() if name == "lambd")


def test_the_papers_tables_hold_the_gains_that_its_text_names():
  def gain(table, run, column, baseline="baseline"):
    return round(table[run][column] - table[baseline][column], 1)

  assert gain(numbers.TABLE1, "r50_both", "AP", "r50_baseline") == 1.1
  assert gain(numbers.TABLE1, "r101_both", "AP", "r101_baseline") == 1.1
  assert [gain(numbers.TABLE2, run, "AP") for run in ("cls", "loc", "both")] == [0.7, 0.8, 1.3]
  printed = {
    "cls": [0.7, 1.0, 0.8, 1.0, 0.2],
    "loc": [-0.2, 0.1, 0.4, 1.8, 1.9],
    "both": [0.4, 0.8, 1.1, 2.1, 2.3],  # the paper prints +0.3 for the first: 54.3 - 53.9 is 0.4
  }
  for run, gains in printed.items():
    assert [gain(numbers.TABLE3, run, column) for column in numbers.IOUS] == gains
