"""Charts as parts of a page: well-formed, named, with the page's colours and ids of their own."""

import re
from xml.etree import ElementTree

from iou_det.report.charts import COLOURS, INK, MARKERS, Look, chart
from iou_det.report.grouped import SHAPES


def drawn(name, title="A <title> & more"):
  def paint(axis):
    for i in range(len(COLOURS)):
      look = Look.of(i)
      axis.plot([0, 1], [i, i], **look.line, marker=look.marker)
    axis.hexbin([0.1, 0.2], [1, 2], gridsize=4, rasterized=True)
    axis.set(xlabel="a $dollar$")

  return chart(name, title, "How it is read.", paint)


def test_a_chart_is_a_named_picture_in_the_colours_of_the_page():
  html = drawn("one chart")
  svg = re.search(r"<svg.*</svg>", html, re.DOTALL)[0]
  root = ElementTree.fromstring(svg)
  assert root.get("role") == "img" and root.get("aria-label") == "A <title> & more"
  assert "width" not in root.attrib and root.get("viewBox")
  assert INK not in svg and not any(colour in svg for colour in COLOURS)
  assert "currentColor" in svg and all(f"var(--c{i})" in svg for i in range(len(COLOURS)))
  for hidden in ("<style", "<metadata", "DejaVu", "#ffffff"):
    assert hidden not in svg
  assert "a $dollar$" in svg and "<h3>A &lt;title&gt; &amp; more</h3>" in html
  assert "How it is read." in html


def test_two_charts_do_not_share_ids_and_find_their_own():
  ids = []
  for name in ("one", "two"):
    svg = drawn(name)
    mine = re.findall(r'\bid="([^"]+)"', svg)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert used and {a or b for a, b in used} <= set(mine)
    ids += mine
  assert len(set(ids)) == len(ids)


def test_all_looks_differ_until_there_are_too_many():
  assert len({Look.of(i) for i in range(28)}) == 28
  assert len({Look.of(i).colour for i in range(7)}) == 7
  assert set(SHAPES) == set(MARKERS)
