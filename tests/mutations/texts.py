"""What happens to an annotation file as text, of any format or of one, and as bytes."""

import gzip
import random
import re
from collections.abc import Callable

Mutation = Callable[[str, random.Random], str]

WORDS = (
  "", " ", "NaN", "nan", "-nan", "Infinity", "-inf", "1e999", "-1e999", "1e308", "1" + "0" * 400, "9" * 5000,
  "-1", "0", "-0",
  "1.5", "10.0", "1e1", "0x10", "1_0", "+7", " 5 ", "1,5", "१२", "null", "None", "true", "abc", "65", "64",
  "1000000",
  "2147483648", "18446744073709551616", "0.1", "0.99999999", "1.00001", "\x00", "\x1b[2J", "é", "红",
  "\ud800", "'", '"',
  "<", "&", "&amp;", "&x;", "%", "{}", "[]", "--", "\t", "\n", "=cmd()", "im0.png", "../im0.png",
  "/etc/passwd")  # fmt: skip


def spots(text: str, pattern: str, rng: random.Random) -> tuple[int, int]:
  found = [m.span() for m in re.finditer(pattern, text)]
  return rng.choice(found) if found else (len(text), len(text))


def number_for_number(text: str, rng: random.Random) -> str:
  start, stop = spots(text, r"-?\d+(\.\d+)?", rng)
  plain = [
    str(rng.randint(0, 64)),
    f"{rng.uniform(0, 50):.3f}",
    f"{rng.random():.6f}",
    str(rng.randint(-5, 5)),
  ]
  return text[:start] + rng.choice([*plain, *plain, rng.choice(WORDS)]) + text[stop:]


def word_for_word(text: str, rng: random.Random) -> str:
  start, stop = spots(text, r"[^\s<>,:\"{}\[\]]+", rng)
  return text[:start] + rng.choice(WORDS) + text[stop:]


def lose_character(text: str, rng: random.Random) -> str:
  i = rng.randrange(len(text))
  return text[:i] + text[i + 1 :]


def lose_mark(text: str, rng: random.Random) -> str:
  start, stop = spots(text, r"[<>/,:\"{}\[\]\n]", rng)
  return text[:start] + text[stop:]


def put_word(text: str, rng: random.Random) -> str:
  i = rng.randrange(len(text) + 1)
  return text[:i] + rng.choice(WORDS) + text[i:]


def line_again(text: str, rng: random.Random) -> str:
  lines = text.splitlines(keepends=True)
  i = rng.randrange(len(lines))
  return "".join(lines[:i] + lines[i : i + 1] * rng.choice([2, 2, 300]) + lines[i + 1 :])


def lose_line(text: str, rng: random.Random) -> str:
  lines = text.splitlines(keepends=True)
  del lines[rng.randrange(len(lines))]
  return "".join(lines)


def swap_lines(text: str, rng: random.Random) -> str:
  lines = text.splitlines(keepends=True)
  i, k = rng.randrange(len(lines)), rng.randrange(len(lines))
  lines[i], lines[k] = lines[k], lines[i]
  return "".join(lines)


def twice(text: str, rng: random.Random) -> str:
  return text + rng.choice(["", "\n", ","]) + text


def comment(text: str, rng: random.Random) -> str:
  start, _ = spots(text, r"\n|[,>]", rng)
  return (
    text[:start]
    + rng.choice(["// by hand", "# by hand\n", "<!-- by hand -->", "/* */", "\n\n\n"])
    + text[start:]
  )


def quotes(text: str, rng: random.Random) -> str:
  return text.replace('"', "'") if rng.random() < 0.5 else text.replace('"', "“")


TEXT: tuple[Mutation, ...] = (
  number_for_number, number_for_number, number_for_number, word_for_word, word_for_word, lose_character,
  lose_mark, put_word,
  line_again, lose_line, swap_lines, twice, comment, quotes)  # fmt: skip


# JSON


def key_again(text: str, rng: random.Random) -> str:
  """An object with one name twice, with other values."""
  start, stop = spots(text, r'"(id|bbox|file_name|images|category_id)": ', rng)
  return text[:stop] + rng.choice(["1", "[]", '"im1.png"', "null"]) + ", " + text[start:]


def comma_too_much(text: str, rng: random.Random) -> str:
  start, _ = spots(text, r"[\]}]", rng)
  return f"{text[:start]},{text[start:]}"


def wrapped(text: str, rng: random.Random) -> str:
  depth = rng.choice([1, 500, 100000])
  return rng.choice(["[" * depth + text + "]" * depth, f'{{"coco": {text}}}', f"callback({text});",
    f"x = {text}",
                     json_lines(text)])  # fmt: skip


def json_lines(text: str) -> str:
  return text.replace("}, {", "}\n{")


# XML


def element(text: str, rng: random.Random) -> str:
  """Another content of an element."""
  start, stop = spots(text, r"(?<=>)[^<>\n]+(?=</)", rng)
  return (
    text[:start] + rng.choice([*WORDS, "dog", "dog", "30", "40.7", "<x>5</x>", "<![CDATA[7]]>"]) + text[stop:]
  )


def lose_element(text: str, rng: random.Random) -> str:
  tag = rng.choice(
    ["xmin", "ymax", "bndbox", "name", "object", "size", "width", "filename", "difficult", "folder"]
  )
  start, stop = spots(text, rf"(?s)<{tag}>.*?</{tag}>", rng)
  return text[:start] + rng.choice(["", "", f"<{tag}/>"]) + text[stop:]


def element_again(text: str, rng: random.Random) -> str:
  tag = rng.choice(
    ["xmin", "ymax", "bndbox", "name", "object", "size", "width", "filename", "difficult", "folder"]
  )
  _, stop = spots(text, rf"(?s)<{tag}>.*?</{tag}>", rng)
  start, stop = spots(text[:stop], rf"(?s)<{tag}>.*?</{tag}>", rng)
  return text[:stop] + text[start:stop] + text[stop:]


def swap_corners(text: str, rng: random.Random) -> str:
  one, other = rng.choice([("xmin", "xmax"), ("ymin", "ymax"), ("width", "height"), ("xmin", "ymin")])
  return text.replace(f"{one}>", "@").replace(f"{other}>", f"{one}>").replace("@", f"{other}>")


def rename_element(text: str, rng: random.Random) -> str:
  tag = rng.choice(["annotation", "object", "bndbox", "xmin", "name", "size"])
  other = rng.choice(["annotations", tag.upper(), f"ns:{tag}", "item", f"{tag} a='1'", f" {tag}", "1"])
  return text.replace(f"<{tag}>", f"<{other}>").replace(f"</{tag}>", f"</{other.split(' a=')[0]}>")


def entities(text: str, rng: random.Random) -> str:
  laughs = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
  inside, use = rng.choice([
    (laughs, "&a9;"), (laughs[:60], "&a1;"), ('<!ENTITY x SYSTEM "file:///etc/passwd">', "&x;"),
    ('<!ENTITY x SYSTEM "http://localhost:1/x">', "&x;"), ('<!ENTITY x "cat">', "&x;"), ('<!ENTITY x "&x;">',
    "&x;"),
    ('<!ENTITY % p SYSTEM "file:///dev/zero"> %p;', "cat"), (f'<!ENTITY x "{"a" * 100000}">',
    "&x;" * 5000)])  # fmt: skip
  start, stop = spots(text, r"(?<=<name>)[^<]*|(?<=<xmin>)[^<]*|(?<=<filename>)[^<]*", rng)
  return f'<?xml version="1.0"?>\n<!DOCTYPE annotation [{inside}]>\n{text[:start]}{use}{text[stop:]}'


def declaration(text: str, rng: random.Random) -> str:
  name = rng.choice(["UTF-8", "utf-16", "latin-1", "gb2312", "none", "utf-7", "cp037"])
  return (
    f'{rng.choice(["", " "])}<?xml version="{rng.choice(["1.0", "1.1", "9"])}" encoding="{name}"?>\n{text}'
  )


def deep(text: str, rng: random.Random) -> str:
  depth = rng.choice([100, 3000, 200000])
  start, _ = spots(text, r"\n", rng)
  return text[:start] + "<a>" * depth + rng.choice(["</a>" * depth, ""]) + text[start:]


# YAML


def yaml_tag(text: str, rng: random.Random) -> str:
  bomb = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 10))
  return rng.choice([
    text.replace("path: .", 'path: !!python/object/apply:os.system ["touch PWNED"]'),
    text + '\nx: !!python/name:os.system\n',
    text.replace("nc: 3", "nc: !!int '3'"), text.replace("cat", "!!str 7"), bomb + text.replace("names:",
    "x: *a9\nnames:"),
    text.replace("names:", "names: &n") + "x: *n\n", text.replace("names:", "names: *nothing\nx:"),
    text + "<<: {nc: 4}\n",
    text.replace("names:", "names: !!set"), "%YAML 9.9\n---\n" + text, text + "---\n" + text,
    "&a [*a]\n" + text,
    text.replace("cat", "!!binary aGk="), text.replace("cat", "2024-01-01"), text.replace("cat", "no"),
    text.replace("cat", "null"),
    text.replace("cat", "1.0"), text.replace("cat", "[a, b]"), text.replace("cat", "{a: b}"),
    text + "[" * 50000])  # fmt: skip


def yaml_shape(text: str, rng: random.Random) -> str:
  names = text[text.index("names:") :] if "names:" in text else text
  return rng.choice([
    text.replace(names, "names: [cat, dog, red bird]\n"), text.replace(names, "names: [cat, dog]\n"),
    text.replace(names, ""),
    text.replace(names, "names: [cat, cat, dog]\n"), text.replace(names, "names: cat\n"),
    text.replace("nc: 3", "nc: 80"),
    text.replace(names, "names: {0: cat, 2: dog, 5: red bird}\n"), text.replace(names,
    "names: {a: cat, b: dog, c: bird}\n"),
    text.replace(names, "names: {0: cat, 0: dog, 1: x, 2: y}\n"), text.replace("path: .", "path: /data/set"),
    text.replace("path: .\n", ""),
    text.replace("images/train", "../train/images"), text.replace("images/train", "images"),
    text.replace("images/train", "train.txt"),
    text.replace("images/train", "[images/train, images/val]"), text.replace("val: images/val\n", ""),
    text.replace("\n", "\n\t"),
    text.replace("images/train", "https://ultralytics.com/a.zip"), text.replace("  ", "\t"),
    text.replace("images/val", "images/train")])  # fmt: skip


# Rows of YOLO


def row_shape(text: str, rng: random.Random) -> str:
  lines = text.splitlines() or [""]
  i = rng.randrange(len(lines))
  label, *box = (lines[i].split() or ["0"]) + ["0.5"] * 4
  a, b, c, d, *_ = box
  lines[i] = rng.choice([
    f"{label} {a} {b} {c}", f"{label} {a} {b} {c} {d} 0.9", f"{label} {a} {b} {c} {d} {a} {b} {c}",
    f"{label},{a},{b},{c},{d}",
    f"{label}\t{a}\t{b}\t{c}\t{d}", f"  {label}  {a} {b} {c} {d}  ", f"7 {a} {b} {c} {d}",
    f"-1 {a} {b} {c} {d}", f"1.0 {a} {b} {c} {d}",
    f"cat {a} {b} {c} {d}", f"{label} 32 24 10 12", f"{label} {a} {b} -{c} {d}", f"{label} {a} {b} 0 {d}",
    f"{label} 1.2 {b} {c} {d}",
    f"{label} 0.98 {b} 0.2 {d}", f"{label} 1 1 1 1", f"{label} 0.5 0.5 1.0000001 1", "",
    f"{label} {a} {b} {c} {d} # x"])  # fmt: skip
  return "\n".join(lines) + rng.choice(["", "\n", "\n\n"])


# Rows of CSV


def csv_cell(text: str, rng: random.Random) -> str:
  lines = text.splitlines()
  i = rng.randrange(len(lines))
  cells = lines[i].split(",")
  k = rng.randrange(len(cells))
  lines[i] = ",".join(
    cells[:k] + [rng.choice([*WORDS, '"' + cells[k] + '"', f" {cells[k]}", f"{cells[k]}.0"])] + cells[k + 1 :]
  )
  return "\n".join(lines) + "\n"


def csv_shape(text: str, rng: random.Random) -> str:
  head, _, rest = text.partition("\n")
  swapped = ",".join(reversed(head.split(",")))
  return rng.choice([
    rest, text.replace(",", ";"), text.replace(",", "\t"), text.replace(",", ", "), f"{head}\n{text}",
    f"{swapped}\n{rest}",
    f"{head.upper()}\n{rest}", f"{head},\n{rest}", head, f"{head}\n", f"#{text}", f"sep=,\n{text}",
    text.replace("\n", ",\n"),
    text.replace("\n", ",extra\n"), f",{text}", text + ",,,,,,,\n", text + "x" * 200000 + "\n",
    text + '"open quote\n',
    text.replace("im0", '"im\n0"'), text.replace("64,48", "64.0,48.0"), text.replace("64,48", "48,64"),
    text.replace("64,48", ","),
    text + "images/im0.png,,,,,\n", text + "im0.png,64,48,,,,,\n", text.replace("cat",
    '"a, ""b"""')])  # fmt: skip


OF_SUFFIX: dict[str, tuple[Mutation, ...]] = {
  ".json": (key_again, comma_too_much, wrapped),
  ".xml": (
    element,
    element,
    lose_element,
    element_again,
    swap_corners,
    rename_element,
    entities,
    declaration,
    deep,
  ),
  ".yaml": (yaml_tag, yaml_shape),
  ".txt": (row_shape, row_shape, row_shape),
  ".csv": (csv_cell, csv_shape),
}


# Bytes


def truncate(data: bytes, rng: random.Random) -> bytes:
  return data[: rng.choice([rng.randrange(len(data)), len(data) - rng.randint(1, 3), 0])]


def flip(data: bytes, rng: random.Random) -> bytes:
  changed = bytearray(data)
  for _ in range(rng.choice([1, 1, 3, 20])):
    changed[rng.randrange(len(changed))] = rng.randrange(256)
  return bytes(changed)


def encoding(data: bytes, rng: random.Random) -> bytes:
  text = data.decode("utf-8", "replace").replace("red bird", rng.choice(["red bird", "roter Käfer"]))
  names = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7"]
  return text.encode(rng.choice(names), "replace")


def line_ends(data: bytes, rng: random.Random) -> bytes:
  return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\x0b", b"\xe2\x80\xa8", b"\0\n", b" \n"]))


def insert(data: bytes, rng: random.Random) -> bytes:
  garbage = [
    b"\0",
    b"\0" * 100,
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\x1a",
    rng.randbytes(20),
    b"\x80",
  ]
  i = rng.choice([0, len(data), rng.randrange(len(data))])
  return data[:i] + rng.choice(garbage) + data[i:]


def another_file(data: bytes, rng: random.Random) -> bytes:
  return rng.choice([b"", b"\n", b" ", b"null", b"[]", b"{}", b"0", b"\xef\xbb\xbf", gzip.compress(data),
    b"\0" * 500,
                     b"<html>404</html>",
                     b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                     b"PK\x03\x04", b"<annotation/>", b"---\n", b",,,,,\n",
                     b"\x89PNG\r\n\x1a\n"])  # fmt: skip


def part_again(data: bytes, rng: random.Random) -> bytes:
  start = rng.randrange(len(data))
  stop = min(len(data), start + rng.choice([1, 10, 200]))
  return data[:stop] + data[start:stop] + data[stop:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
  truncate, truncate, flip, flip, encoding, encoding, line_ends, insert, another_file,
  part_again)  # fmt: skip
