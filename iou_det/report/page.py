"""One HTML file with everything in it: no network, opened by a double click."""

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from iou_det.storage import AnyPath, write_whole


class Section(NamedTuple):
  """A part of the page, with a line in its navigation.

  Attributes:
    id: of the element, for links: small letters and dashes.
    title: plain text.
    html: as it stands, so names out of data must have been escaped (`html.escape`); scripts in it do not run.
      A table wider than a telephone stands in <div class="wide">. SVG that draws with currentColor goes along
      with dark mode, and so do the colours var(--c0) to var(--c6), of page.css.
  """

  id: str
  title: str
  html: str


def write_page(path: AnyPath, title: str, sections: list[Section], gallery: dict[str, Any]) -> int:
  """Writes the page, whole or not at all, and returns its bytes.

  Args:
    gallery: of `make_gallery`, shown below the sections; empty: none.
  """
  part = lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")
  if gallery:
    sections = [*sections, Section("gallery", "Pictures", part("gallery.html"))]
  link = '<li><a href="#{}">{}</a></li>'.format
  body = '<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>\n{2}\n</section>'.format
  script = part("marks.js") + part("zoom.js") + part("page.js")  # in one scope
  page = Template(part("page.html")).substitute(
    title=html.escape(title),
    style=part("page.css"),
    links="\n".join(link(s.id, html.escape(s.title)) for s in sections),
    sections="\n".join(body(s.id, html.escape(s.title), s.html) for s in sections),
    data=json.dumps(gallery, separators=(",", ":")).replace("<", "\\u003c"),  # no </script>, no <!--
    script=script,
    allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
  )
  content = page.encode(errors="backslashreplace")  # names that are not UTF-8
  write_whole(path, content)
  return len(content)
