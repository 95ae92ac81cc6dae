"""The page in a real Chromium: what a user sees, clicks and types."""

import re

import pytest

from iou_det.report.gallery import make_gallery
from iou_det.report.page import Section, write_page
from tests.browser import chromium
from tests.report.made import EVERY_KIND, OBJECTS, make_runs

pytestmark = pytest.mark.browser

LONG = "a_name_of_a_class_that_is_longer_than_a_telephone_is_wide_" * 3
HOSTILE = "</script><img src=x onerror=alert(1)> \u0634\u0643\u0644"
# The first picture has every kind. In the second, a finds the disc and b the star. In each of the other 28, a
# has one false detection.
IMAGES = [OBJECTS, [(10, 10, 30, 30, 0), (60, 60, 30, 30, 1)]] + [[]] * 28
A = [*EVERY_KIND, (1, 10, 10, 30, 30, 0, 0.95)] + [(i, 5, 5, 20, 20, 0, 0.85) for i in range(2, 30)]
B = [(1, 60, 60, 30, 30, 1, 0.75)]
CLASSES = ("disc", HOSTILE, LONG)
START = 60  # percent
# At a score of 0.60, by hand (see made.FOUND).
COUNTS = {
  "a": {"missed": 3, "false": 28, "place": 1, "class": 1, "both": 0, "duplicate": 1, "right": 2},
  "b": {"missed": 6, "false": 0, "place": 0, "class": 0, "both": 0, "duplicate": 0, "right": 1},
}
NONE = dict.fromkeys(COUNTS["a"], 0)
TABLE = '<div class="wide"><table><tr><th>run</th>' + "<td>0.123</td>" * 30 + "</tr></table></div>"
LINE = '<svg viewBox="0 0 9 9" width="900" height="90"><path d="M0 0 9 9" stroke="currentColor"/></svg>'
CHART = f'<figure>{LINE}<figcaption class="note">A line</figcaption></figure>'
SECTIONS = [Section("summary", "Summary", TABLE), Section("curves", "Curves", CHART)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("page") / "page.html"
  runs = make_runs(IMAGES, {"a": A, "b": B}, classes=CLASSES, names=[LONG, HOSTILE])
  gallery = make_gallery(runs, 10**7) | {"threshold": START}
  write_page(path, "Two runs", SECTIONS, gallery)
  return path


@pytest.fixture(scope="module")
def browser():
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def visit(browser, file):
  """Opens the page; anything said on the console, and anything loaded but the file itself, is an error."""
  wrong, contexts = [], []

  def visit(width=1280, dark=False, part=""):
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    allowed = (file.as_uri(), "data:image/webp")
    page.on("request", lambda r: None if r.url.startswith(allowed) else wrong.append(r.url))
    page.goto(file.as_uri() + part)
    return page

  yield visit
  for context in contexts:
    context.close()
  assert wrong == []


def settle(page):
  """After what a change leads to has been drawn."""
  page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def table(page):
  """What the table of numbers shows: run: kind: number."""
  settle(page)
  rows = page.locator("#counts tbody tr").all()
  cells = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}
  return {run: dict(zip(COUNTS["a"], map(int, row[:7]), strict=True)) for run, row in cells.items()}


def marks(page, kind, run=0, card=0):
  settle(page)
  panel = page.locator(f"#cards .card >> nth={card}").locator(f".panel[data-run='{run}']")
  return panel.locator(f".mark.{kind}").count()


def listed(page):
  settle(page)
  return int(re.match(r"\d+", page.locator("#shown").inner_text())[0])


def test_the_slider_changes_numbers_and_boxes(visit):
  page = visit()
  assert table(page) == COUNTS and listed(page) == 30
  kinds = [*COUNTS["a"], "object", "crowd", "ignored"]
  seen = lambda: {kind: n for kind in kinds if (n := marks(page, kind))}
  # In the first picture there are five objects, of which two are missed, and a crowd.
  first = {"missed": 2, "place": 1, "class": 1, "duplicate": 1, "right": 1, "object": 3, "crowd": 1}
  assert seen() == first
  said = page.locator(".card .sum").first
  assert said.inner_text() == "2 missed, 1 poorly placed, 1 wrong class, 1 duplicate, 1 right"
  slider = page.locator("#score")
  slider.fill("61")  # what has 0.6 is out, and its object is missed
  assert table(page)["a"] == COUNTS["a"] | {"missed": 4, "place": 0}
  assert seen() == {k: n for k, n in (first | {"missed": 3, "object": 2}).items() if k != "place"}
  assert said.inner_text() == "3 missed, 1 wrong class, 1 duplicate, 1 right"
  slider.fill("0")
  more = {"missed": 2, "false": 29, "place": 1, "class": 1, "both": 1, "duplicate": 1, "right": 3}
  assert table(page)["a"] == more
  assert marks(page, "both") == marks(page, "ignored") == 1
  slider.fill("100")
  assert table(page) == {"a": NONE | {"missed": 7}, "b": NONE | {"missed": 7}}
  page.get_by_role("button", name="Reset").click()
  assert table(page) == COUNTS and slider.input_value() == str(START)


def test_filters_choose_pictures_boxes_and_numbers(visit):
  page = visit()
  assert marks(page, "faint") == 0
  for kind, pictures in {"false": 28, "missed": 2, "duplicate": 1, "both": 0, "right": 2}.items():
    page.locator("#kind").select_option(kind)
    assert (listed(page), page.locator(".card").count()) == (pictures, min(pictures, 24))
    assert table(page) == COUNTS
  page.locator("#kind").select_option("duplicate")
  assert marks(page, "faint") == 6 + 4 - 1 and marks(page, "duplicate.faint") == 0  # all but the one
  page.locator("#kind").select_option("")
  page.locator("#class").select_option(label=HOSTILE)  # the stars
  assert listed(page) == 2
  assert table(page) == {"a": NONE | {"missed": 3}, "b": NONE | {"missed": 3, "right": 1}}
  page.locator("#class").select_option(label=LONG)
  assert listed(page) == 0 and table(page) == {"a": NONE, "b": NONE}
  page.locator("#class").select_option("")
  page.locator("#run").select_option(label="b")
  assert table(page) == {"b": COUNTS["b"]}
  assert page.locator(".panel[data-run='0']:visible").count() == 0
  page.locator("#kind").select_option("false")
  assert listed(page) == 0  # b has none


def test_what_one_run_finds_and_the_other_does_not(visit):
  page = visit()
  said = lambda: page.locator("#shown").inner_text()
  page.locator("#pair").select_option(label="a finds, b does not")
  assert listed(page) == 2 and "with 2 objects that a finds and b does not" in said()
  assert marks(page, "right:not(.faint)", run=0) == marks(page, "missed:not(.faint)", run=1) == 1
  page.locator("#kind").select_option("duplicate")  # of an object that b does not find
  assert listed(page) == 1
  page.locator("#kind").select_option("")
  page.locator("#pair").select_option(label="b finds, a does not")
  assert listed(page) == 1 and "with 1 objects that b finds and a does not" in said()
  page.locator("#score").fill("76")  # nor b then
  assert listed(page) == 0


def test_orders_and_more_pictures(visit):
  page = visit()
  first = lambda: (settle(page), page.locator(".card .file").first.inner_text())[1]
  assert first() == LONG  # ten errors
  for order, name in {"sure": "2.png", "differing": HOSTILE, "name": "10.png", "errors": LONG}.items():
    page.locator("#order").select_option(order)
    assert first() == name
  assert page.locator(".card").count() == 24
  page.get_by_role("button", name="More pictures (6)").click()
  assert page.locator(".card").count() == 30 and not page.locator("#more").is_visible()
  assert focused_card(page) == 24


def focused_card(page):
  own = "document.activeElement.closest('.card')"
  return page.evaluate(f"[...document.querySelectorAll('.card')].indexOf({own})")


def tab_to(page, selector):
  for _ in range(25):
    page.keyboard.press("Tab")
    if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
      outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
      assert outline != "none"  # the focus can be seen
      return
  raise AssertionError(f"no {selector} in 25 steps")


def test_everything_by_keyboard(visit):
  page = visit()
  tab_to(page, "#score")
  page.keyboard.press("ArrowRight")
  assert table(page)["a"]["missed"] == 4 and page.locator("#threshold").inner_text() == "0.61"
  page.keyboard.press("Home")
  assert table(page)["a"]["right"] == 3
  tab_to(page, ".open")
  page.keyboard.press("Enter")
  dialog, title = page.locator("#zoom"), page.locator("#zoom-title")
  assert dialog.is_visible() and title.inner_text() == f"{LONG} (1 of 30)"
  page.keyboard.press("ArrowLeft")  # there is none
  page.keyboard.press("ArrowRight")
  assert title.inner_text() == f"{HOSTILE} (2 of 30)"
  width = lambda: page.locator("#stages .picture").first.bounding_box()["width"]
  before = width()
  page.keyboard.press("+")
  assert width() == pytest.approx(1.5 * before, rel=0.01)
  scrolled = lambda: page.locator(".stage").evaluate_all("(all) => all.map((stage) => stage.scrollLeft)")
  start = scrolled()
  page.keyboard.press("Shift+ArrowRight")
  settle(page)
  assert scrolled()[0] > start[0] and scrolled()[0] == scrolled()[1]  # both runs
  page.keyboard.press("0")
  assert width() == pytest.approx(before)
  for _ in range(30):
    page.keyboard.press("ArrowRight")
  assert title.inner_text().endswith("(30 of 30)")
  page.keyboard.press("Escape")
  dialog.wait_for(state="hidden")
  settle(page)
  assert focused_card(page) == 29


def test_the_enlarged_picture_names_classes_and_scores(visit):
  page = visit()
  page.locator(".open").nth(1).click()
  tags = page.locator("#stages [data-run='0'] .tag").all_inner_texts()
  assert sorted(tags) == sorted(["disc 0.95", f"M {HOSTILE}"])
  page.get_by_label("Labels").uncheck()
  assert page.locator("#stages [data-run='0'] .tag").all_inner_texts() == ["M"]
  widths = lambda: page.locator("#stages .picture").evaluate_all("(all) => all.map((p) => p.offsetWidth)")
  before = widths()
  page.locator("#stages .stage").first.hover()
  page.mouse.wheel(0, -100)
  grown = "(w) => document.querySelector('#stages .picture').offsetWidth > 1.2 * w"
  page.wait_for_function(grown, arg=before[0])
  assert widths()[0] == widths()[1]
  page.get_by_role("button", name="Close").click()
  assert not page.locator("#zoom").is_visible()


def test_the_address_keeps_what_was_chosen(visit):
  page = visit()
  page.locator("#kind").select_option("missed")
  page.locator("#pair").select_option("0-1")
  page.locator("#score").fill("42")
  settle(page)
  part = "#" + page.url.partition("#")[2]
  other = visit(part=part)
  values = [other.locator(f"#{name}").input_value() for name in ("kind", "pair", "score", "class")]
  assert values == ["missed", "0-1", "42", ""]
  assert listed(other) == listed(page) and table(other) == table(page)
  broken = visit(part="#gallery?kind=nothing&score=1e9&run=7&pair=x")
  assert table(broken) == COUNTS and listed(broken) == 30


CONTRAST = r"""() => {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((numbers(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const text = (node) => node.nodeType === 3 && node.data.trim();
  const own = (e) => [...e.childNodes].some(text) && e.getClientRects().length;
  return [...document.querySelectorAll("body *")].filter(own).map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
  }).sort(([x], [y]) => x - y);
}"""


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(visit, width, dark):
  page = visit(width, dark)
  settle(page)
  fits = lambda: page.evaluate("document.documentElement.scrollWidth") <= width
  assert fits()
  background = page.evaluate("getComputedStyle(document.body).backgroundColor")
  assert background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
  contrasts = page.evaluate(CONTRAST)
  assert len(contrasts) > 50 and contrasts[0][0] >= 4.5, contrasts[:3]
  page.locator("#class").select_option(label=LONG)
  page.locator("#pair").select_option("0-1")
  assert fits()
  page.get_by_role("button", name="Reset").click()
  settle(page)
  panels = page.locator(".card >> nth=0").locator(".panel").all()
  boxes = [panel.bounding_box() for panel in panels]
  assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["width"] > 150  # side by side
  page.locator(".open").first.click()
  assert fits() and page.locator("#close").bounding_box()["x"] < width
  whole = "all.map((s) => s.scrollWidth <= s.clientWidth && s.scrollHeight <= s.clientHeight)"
  assert page.locator("#stages .stage").evaluate_all(f"(all) => {whole}") == [True, True]
  assert page.evaluate(CONTRAST)[0][0] >= 4.5


def test_one_run_has_no_controls_for_two(browser, tmp_path):
  gallery = make_gallery(make_runs([[(10, 10, 30, 30, 0)]], {"only": []}), 10**7)
  write_page(tmp_path / "page.html", "One run", [], gallery)
  page = browser.new_page()
  page.goto((tmp_path / "page.html").as_uri())
  assert page.locator("#class").is_visible()
  assert not page.locator("#run").is_visible() and not page.locator("#pair").is_visible()
  assert "crowd" not in page.locator("#legend").inner_text()
  page.close()
