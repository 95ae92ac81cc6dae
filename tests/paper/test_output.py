"""Tables: Markdown that lines up, CSV that reads back; the paper's numbers agree with each other."""

import csv

import numpy as np
import pytest

from iou_det.paper.experiments import FIVE_IOUS, SIZES, TABLES
from iou_det.paper.output import Output

COLUMNS = ["run", "AP", "difference", "images", "hours"]
ROWS = [
  ["baseline", 34.449, None, 50, "1|2"],
  ["both", 9.1, 1 / 3, 5000, None],
  ["loc", -0.04, -2.0, 1, "a\nb"],
]
COMMAND = "iou-det reproduce table2 --preset shapes"
STAMP = "smoke, not a result"


def write(folder, smoke=False):
  formats = {"difference": "+.2f"}
  output = Output(folder, "", COMMAND, smoke)
  return output.table("table_1.5", COLUMNS, ROWS, caption="AP in percent.", formats=formats)


def test_markdown(tmp_path):
  text = write(tmp_path, smoke=True)
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


@pytest.mark.parametrize("smoke", [False, True])
def test_csv_reads_back(tmp_path, smoke):
  write(tmp_path, smoke)
  with (tmp_path / "table_1.5.csv").open(newline="") as file:
    header, *rows = csv.reader(file)
  if smoke:
    assert [header.pop(), *[row.pop() for row in rows]] == ["stamp", *[STAMP] * 3]
  assert header == COLUMNS
  kinds = (str, float, float, int, str)
  back = [[kind(cell) if cell else None for kind, cell in zip(kinds, row, strict=True)] for row in rows]
  assert back == ROWS


def test_csv_keeps_every_digit_of_numpy_floats(tmp_path):
  values = np.random.default_rng(0).normal(size=50) * 10.0 ** np.arange(-25, 25)
  Output(tmp_path, "", COMMAND).csv("x", ["x"], [[value] for value in values])
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
  table = {"columns": ["run", "AP"], "rows": [["a", 1.0]], "caption": "c"} | change
  with pytest.raises(ValueError, match=message):
    Output(tmp_path, "", "x").table("t", **table)
  assert not list(tmp_path.iterdir())


def printed(name):
  """What the paper printed in a table, by run; Table 1's with the larger backbone as run_large."""
  table = TABLES[name]
  columns = {"table3": FIVE_IOUS, "table4": ("AP",)}.get(name, SIZES)
  assert table.figures[: len(columns)] == columns
  return {
    line.run + "_large" * line.large: dict(zip(columns, line.paper, strict=True))
    for line in table.lines
    if line.paper
  }


def test_the_papers_tables_agree_where_they_print_the_same_run():
  two, three, four = printed("table2"), printed("table3"), printed("table4")
  assert set(two) == set(three) == {"baseline", "cls", "loc", "both"} and len(four) == 9
  for run in two:
    assert two[run]["AP50"] == three[run]["AP50"]
  ap = {run: row["AP"] for run, row in two.items()}
  four = {run: row["AP"] for run, row in four.items()}
  assert ap["baseline"] == four["baseline"]
  assert ap["cls"] == four["cls"] == max(v for run, v in four.items() if run.startswith(("eta", "cls")))
  assert ap["loc"] == four["loc"] == max(v for run, v in four.items() if run.startswith(("lambd", "loc")))


def test_the_papers_tables_hold_the_gains_that_its_text_names():
  def gain(table, run, column, baseline="baseline"):
    return round(table[run][column] - table[baseline][column], 1)

  assert gain(printed("table1"), "both", "AP") == 1.1
  assert gain(printed("table1"), "both_large", "AP", "baseline_large") == 1.1
  assert [gain(printed("table2"), run, "AP") for run in ("cls", "loc", "both")] == [0.7, 0.8, 1.3]
  gains = {
    "cls": [0.7, 1.0, 0.8, 1.0, 0.2],
    "loc": [-0.2, 0.1, 0.4, 1.8, 1.9],
    "both": [0.4, 0.8, 1.1, 2.1, 2.3],  # the paper prints +0.3 for the first: 54.3 - 53.9 is 0.4
  }
  for run, expected in gains.items():
    assert [gain(printed("table3"), run, column) for column in FIVE_IOUS] == expected
