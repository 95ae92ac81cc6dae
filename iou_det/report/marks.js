"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 24; // pictures that are added at a time
// Kind of mark: letter, title, what it means. The first seven are counted, in this order.
const KINDS = {
  missed: ["M", "missed", "an object that no detection found, not even poorly placed or as another class"],
  false: ["F", "false", "on the background: IoU below 0.1 with any object"],
  place: ["P", "poorly placed", "right class, best IoU 0.1 to 0.5"],
  class: ["C", "wrong class", "IoU of 0.5 or more with an object of another class"],
  both: ["B", "class and place", "poorly placed on an object of another class"],
  duplicate: ["D", "duplicate", "its object has a better detection"],
  right: ["", "right", "class is right, IoU of 0.5 or more"],
  object: ["", "ground truth", "an object as it was annotated"],
  crowd: ["", "crowd", "a region of many objects: what is found in it is not counted, nor missed"],
  ignored: ["", "in a crowd", "a detection in a crowd region, not counted"],
};
const ERRORS = Object.keys(KINDS).slice(0, 6);
const COUNTED = Object.keys(KINDS).slice(0, 7);
const START = { class: "", kind: "", run: "", pair: "", order: "errors" };
const byId = (id) => document.getElementById(id);
const state = { ...START, score: data.threshold };
let listed = []; // what the filters leave, in order
let limit = PAGE;

/** An element with attributes and children; text goes in as text, never as HTML. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function shape(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A score as text, from steps of the slider; rounded down, as it is compared. */
const percent = (steps) => (Math.floor(steps) / data.steps).toFixed(2);
const runsShown = () => (state.run === "" ? data.runs.map((_, r) => r) : [Number(state.run)]);
const filtered = () => state.class !== "" || state.kind !== "" || state.pair !== "";

// ---- What there is in a picture at the chosen score

/** The marks of a run, objects first, then detections from the best on; and which objects it found. */
function look(image, run) {
  const least = state.score * data.fine;
  const found = new Set();
  const noticed = new Set();
  const detections = [];
  for (const [x, y, w, h, score, label, kind, object] of image.found[run]) {
    if (score < least) break; // they are sorted
    const name = data.kinds[kind];
    if (name === "right") found.add(object);
    if (name === "place" || name === "class") noticed.add(object);
    detections.push({ kind: name, box: [x, y, w, h], label, score, object });
  }
  const objects = image.objects.map(([x, y, w, h, label, crowd], object) => {
    const missed = !found.has(object) && !noticed.has(object);
    return { kind: crowd ? "crowd" : missed ? "missed" : "object", box: [x, y, w, h], label, object };
  });
  return { marks: [...objects, ...detections], found };
}

/** A picture with the marks of each run, which of them the filters are about, and what orders it. */
function judge(image) {
  const runs = data.runs.map((_, run) => look(image, run));
  const [one, other] = state.pair === "" ? [] : state.pair.split("-").map((r) => runs[r].found);
  for (const { marks } of runs)
    for (const mark of marks)
      mark.hit =
        (state.class === "" || mark.label === Number(state.class)) &&
        (state.kind === "" || mark.kind === state.kind) &&
        (!one || (one.has(mark.object) && !other.has(mark.object)));
  const hits = runsShown().flatMap((run) => runs[run].marks.filter((mark) => mark.hit));
  const errors = hits.filter((mark) => ERRORS.includes(mark.kind));
  const finders = (k) => runs.filter(({ found }) => found.has(k)).length % data.runs.length;
  return {
    image, runs, hits: hits.length, errors: errors.length,
    objects: new Set(hits.map((mark) => mark.object).filter((k) => k >= 0)).size,
    sure: Math.max(-1, ...errors.map((mark) => mark.score ?? -1)),
    differing: image.objects.filter((o, k) => finders(k)).length,
  };
}

const ORDERS = {
  errors: ["most errors", (a, b) => b.errors - a.errors || b.hits - a.hits],
  sure: ["error of the highest score", (a, b) => b.sure - a.sure],
  ...(data.runs?.length > 1 && { differing: ["runs differ most", (a, b) => b.differing - a.differing] }),
  name: ["file name", (a, b) => (a.image.file < b.image.file ? -1 : a.image.file > b.image.file ? 1 : 0)],
};

// ---- Drawing

/** The boxes of a run on its picture, what matters on top. */
function draw(picture, seen, run, labels) {
  const viewBox = `0 0 ${seen.image.width} ${seen.image.height}`;
  const svg = shape("svg", { viewBox, preserveAspectRatio: "none", "aria-hidden": true });
  const tags = make("span", { class: "tags", "aria-hidden": true });
  const faint = (mark) => filtered() && !mark.hit;
  const rank = (mark) => (faint(mark) ? 0 : ERRORS.includes(mark.kind) ? 2 : 1);
  const order = [...seen.runs[run].marks];
  order.sort((a, b) => rank(a) - rank(b) || (a.score ?? -1) - (b.score ?? -1));
  for (const mark of order) {
    const [x, y, width, height] = mark.box.map((value, k) => (k < 2 ? value : Math.max(value, 0)));
    const lines = ["halo", "line"].map((name) => shape("rect", { x, y, width, height, class: name }));
    svg.append(shape("g", { class: `mark ${mark.kind}${faint(mark) ? " faint" : ""}` }, ...lines));
  }
  picture.querySelector("svg")?.remove();
  picture.querySelector(".tags")?.remove();
  picture.append(svg, tags);
  const named = (mark) => !faint(mark) && (KINDS[mark.kind][0] || (labels && mark.kind === "right"));
  letters(tags, order.filter(named).reverse(), seen.image, labels);
}

/** Letters, or labels, on the corners of boxes: each where it covers the least of those before. */
function letters(tags, marks, image, labels) {
  const across = tags.clientWidth;
  const scale = across / image.width;
  const down = image.height * scale;
  const texts = marks.map((mark) => {
    const tag = make("span", { class: `tag ${mark.kind}` }, KINDS[mark.kind][0]);
    if (labels) {
      tag.append(tag.textContent ? " " : "", make("bdi", {}, data.classes[mark.label]));
      if (mark.score !== undefined) tag.append(` ${percent(mark.score / data.fine)}`);
    }
    return tag;
  });
  tags.append(...texts);
  const sizes = texts.map((tag) => [tag.offsetWidth, tag.offsetHeight]);
  const taken = [];
  const common = (from, to, start, end) => Math.max(0, Math.min(to, end) - Math.max(from, start));
  marks.forEach((mark, i) => {
    const [w, h] = sizes[i];
    const [x1, y1, bw, bh] = mark.box.map((value) => value * scale);
    const places = [y1 - h, y1, y1 + bh - h, y1 + bh].flatMap((y) => [x1, x1 + bw - w].map((x) => {
      const [left, top] = [Math.max(0, Math.min(x, across - w)), Math.max(0, Math.min(y, down - h))];
      const moved = Math.abs(left - x) * h + Math.abs(top - y) * w; // into the picture
      const covered = taken.map(([l, t, r, b]) => common(left, left + w, l, r) * common(top, top + h, t, b));
      return { left, top, cost: covered.reduce((sum, area) => sum + area, moved) };
    }));
    const { left, top } = places.reduce((best, place) => (place.cost < best.cost ? place : best));
    taken.push([left, top, left + w, top + h]);
    // Shares of the picture: on paper it has another size.
    texts[i].style.left = `${(100 * left) / across}%`;
    texts[i].style.top = `${(100 * top) / down}%`;
  });
}
