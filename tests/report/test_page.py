"""The page as a file: whole, small, its own, and nothing in it that data could have brought to life."""

import json
import re
from html.parser import HTMLParser

from iou_det.report.gallery import make_gallery
from iou_det.report.page import Section, write_page
from tests.report.made import EVERY_KIND, OBJECTS, make_runs

HOSTILE = (
  "</script><script>alert(1)</script>",
  '"><img src=x onerror=alert(1)>',
  "<!--<script>",
  "\u202eshape \u0634\u0643\u0644",  # forced and natural right to left
  "&lt;b&gt; \U0001f98a 'q'",
  "latin1 \udce9",  # a byte of a file name that is not UTF-8
)
LOADS = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")


class Parts(HTMLParser):
  """Tags with their attributes, and what is in each script."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts, self.text = [], [], ""
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag == "script":
      self.scripts.append("")

  def handle_data(self, data):
    if self.cdata_elem == "script":
      self.scripts[-1] += data
    else:
      self.text += data


def hostile_page(folder):
  found = [(i, *EVERY_KIND[0][1:5], i, 0.9) for i in range(len(HOSTILE))]
  runs = make_runs([OBJECTS] * len(HOSTILE), {n: found for n in HOSTILE[:2]}, classes=HOSTILE, names=HOSTILE)
  gallery = make_gallery(runs, 10**7)
  path = folder / "page.html"
  size = write_page(path, HOSTILE[0], [Section("one", HOSTILE[1], "<p>as it is</p>")], gallery)
  assert size == path.stat().st_size
  return gallery, path.read_text(encoding="utf-8")


def test_names_out_of_data_stay_text(tmp_path):
  gallery, page = hostile_page(tmp_path)
  parts = Parts(page)
  data, script = parts.scripts  # two elements, whatever the names say
  assert json.loads(data) == json.loads(json.dumps(gallery))
  assert json.loads(data)["classes"] == list(HOSTILE)
  assert not any(name in script for name in HOSTILE)
  tags = [tag for tag, _ in parts.tags]
  assert "img" not in tags and not any(key.startswith("on") for _, a in parts.tags for key in a)
  assert parts.text.count(HOSTILE[0]) == 2 and parts.text.count(HOSTILE[1]) == 2  # title, h1; link, h2
  # HTML is never made of text: the one way in which names get on the page is as text.
  assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script)


def test_the_page_loads_nothing(tmp_path):
  _, page = hostile_page(tmp_path)
  parts = Parts(page)
  loaded = [value for _, a in parts.tags for key, value in a.items() if key in LOADS]
  assert loaded and all(value.startswith("#") for value in loaded)
  (policy,) = [a["content"] for tag, a in parts.tags if tag == "meta" and "http-equiv" in a]
  assert policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy
  style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
  assert not re.search(r"url\(|@import|@font-face", style)
  assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", parts.scripts[1])
  assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, no address


def test_a_page_without_pictures(tmp_path):
  sections = [Section("one", "One", "<p>1</p>"), Section("two", "Two", "")]
  write_page(tmp_path / "page.html", "runs", sections, {})
  page = (tmp_path / "page.html").read_text()
  parts = Parts(page)
  assert [a["href"] for tag, a in parts.tags if tag == "a"] == ["#main", "#one", "#two"]
  assert [a["id"] for tag, a in parts.tags if tag == "section"] == ["one", "two"]
  assert parts.scripts[0] == "{}" and len(page) < 60_000


def test_the_page_is_replaced_whole(tmp_path):
  write_page(tmp_path / "page.html", "runs", [], {})
  write_page(tmp_path / "page.html", "others", [], {})
  assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
  assert "<h1>others</h1>" in (tmp_path / "page.html").read_text()
