const pictureOf = ({ picture, width, height }, alt) => {
  const frame = make("span", { class: "picture" }, make("img", { src: picture, alt }));
  frame.style.aspectRatio = `${width} / ${height}`;
  return frame;
};

function summary(seen, run) {
  const { marks } = seen.runs[run];
  const number = (kind) => marks.filter((mark) => mark.kind === kind).length;
  const parts = COUNTED.filter(number).map((kind) => `${number(kind)} ${KINDS[kind][1]}`);
  return parts.join(", ") || "no boxes";
}

const cards = new Map();

function cardOf(image) {
  if (!cards.has(image)) {
    const panels = data.runs.map((name, run) => {
      const parts = [make("bdi", { class: "run" }, name), make("span", { class: "sum" })];
      const caption = make("span", { class: "caption" }, ...parts);
      return make("span", { class: "panel", "data-run": run }, pictureOf(image, ""), caption);
    });
    const open = make("button", { type: "button", class: "open" }, ...panels);
    open.addEventListener("click", () => openZoom(listed.findIndex((seen) => seen.image === image)));
    const title = make("p", { class: "file", title: image.file }, make("bdi", {}, image.file));
    cards.set(image, make("article", { class: "card", "data-id": image.id }, title, open));
  }
  return cards.get(image);
}

function fill(card, seen) {
  const runs = runsShown();
  const texts = runs.map((run) => `${data.runs[run]}: ${summary(seen, run)}`);
  card.querySelector(".open").setAttribute("aria-label", `${seen.image.file}: ${texts.join("; ")}. Enlarge`);
  for (const panel of card.querySelectorAll(".panel")) {
    const run = Number(panel.dataset.run);
    panel.hidden = !runs.includes(run);
    panel.querySelector(".sum").textContent = summary(seen, run);
    if (!panel.hidden) draw(panel.querySelector(".picture"), seen, run, false);
  }
}

// ---- The list

function update() {
  listed = data.images.map(judge).filter((seen) => !filtered() || seen.hits);
  listed.sort(ORDERS[state.order][1]);
  byId("score").value = state.score;
  byId("score").setAttribute("aria-valuetext", percent(state.score));
  byId("threshold").textContent = percent(state.score);
  for (const name of Object.keys(START)) byId(name).value = state[name];
  showCounts();
  showCards();
  const sum = (key) => listed.reduce((total, seen) => total + seen[key], 0);
  const [one, other] = state.pair.split("-").map((r) => data.runs[r]);
  let text = `${listed.length} of ${data.images.length} pictures`;
  if (state.pair !== "") text += `, with ${sum("objects")} objects that ${one} finds and ${other} does not`;
  else if (filtered()) text += `, with ${sum("hits")} boxes that fit`;
  byId("shown").textContent = `${text}.`;
  const changed = [...Object.keys(START).filter((k) => state[k] !== START[k]), "score"];
  const query = new URLSearchParams(changed.map((key) => [key, state[key]]));
  const chosen = changed.length > 1 || state.score !== data.threshold;
  if (chosen) history.replaceState(null, "", `#gallery?${query}`);
  else if (location.hash.startsWith("#gallery?")) history.replaceState(null, "", "#gallery");
}

function showCards() {
  const shown = listed.slice(0, limit);
  const parts = shown.map((seen) => cardOf(seen.image));
  const there = [...byId("cards").children];
  const same = parts.length === there.length && parts.every((card, i) => card === there[i]);
  if (!same) byId("cards").replaceChildren(...parts); // only then: what has the focus would lose it
  byId("cards").style.setProperty("--card-width", `${17 * Math.min(runsShown().length, 2)}rem`);
  shown.forEach((seen, i) => fill(parts[i], seen));
  byId("more").hidden = listed.length <= limit;
  byId("more").textContent = `More pictures (${listed.length - shown.length})`;
}

/** Numbers of all images, those without a picture here too. */
function showCounts() {
  const chosen = state.class === "" ? data.classes.map((_, k) => k) : [Number(state.class)];
  const count = (run, kind, fits) => {
    let total = 0;
    for (const k of chosen) {
      const steps = data.counts[run][kind][k];
      for (let i = 0; i < steps.length; i += 2) if (fits(steps[i])) total += steps[i + 1];
    }
    return total;
  };
  const rows = runsShown().map((run) => {
    const counts = (kind) => (step) => (step < state.score) === (kind === "missed");
    const numbers = COUNTED.map((kind) => count(run, kind, counts(kind)));
    const right = numbers[6];
    const detections = numbers.slice(1).reduce((a, b) => a + b);
    const objects = count(run, "missed", () => true);
    const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "-");
    const cells = [...numbers, share(right, detections), share(right, objects)];
    return make("tr", { "data-run": run }, make("th", { scope: "row", dir: "auto" }, data.runs[run]),
      ...cells.map((cell) => make("td", {}, String(cell))));
  });
  byId("counts").tBodies[0].replaceChildren(...rows);
  const of = state.class === "" ? "" : ` of ${data.classes[state.class]}`;
  byId("counts-title").textContent =
    `Detections and missed objects${of} in all ${data.total} images, ` +
    `at a score of ${percent(state.score)} or more`;
}

// ---- The beginning

function fillControls() {
  const options = (id, rows) =>
    byId(id).replaceChildren(...rows.map(([value, text]) => make("option", { value }, text)));
  options("class", [["", "all"], ...data.classes.map((name, k) => [k, name])]);
  options("kind", [["", "all"], ...COUNTED.map((kind) => [kind, KINDS[kind][1]])]);
  options("run", [["", "all"], ...data.runs.map((name, run) => [run, name])]);
  const pair = ([i, a], [j, b]) => [`${i}-${j}`, `${a} finds, ${b} does not`];
  const runs = [...data.runs.entries()];
  const pairs = runs.flatMap((one) => runs.map((other) => pair(one, other)));
  options("pair", [["", "any"], ...pairs.filter((_, k) => k % (data.runs.length + 1))]); // none with itself
  options("order", Object.entries(ORDERS).map(([key, [title]]) => [key, title]));
  for (const id of ["run", "pair"]) byId(id).closest("label").hidden = data.runs.length < 2;
  byId("score").max = data.steps;
  const heads = ["run", ...COUNTED.map((kind) => KINDS[kind][1]), "precision", "recall"];
  const cells = heads.map((text) => make("th", { scope: "col" }, text));
  byId("counts").tHead.replaceChildren(make("tr", {}, ...cells));
}

function fillLegend() {
  const crowds = data.images.some((image) => image.objects.some(([, , , , , crowd]) => crowd));
  const kinds = Object.keys(KINDS).filter((kind) => crowds || !["crowd", "ignored"].includes(kind));
  const place = { x: 3, y: 3, width: 24, height: 14 };
  byId("legend").replaceChildren(...kinds.map((kind) => {
    const [letter, title, meaning] = KINDS[kind];
    const lines = ["back", "halo", "line"].map((name) => shape("rect", { ...place, class: name }));
    const size = { viewBox: "0 0 30 20", width: 30, height: 20, "aria-hidden": true };
    const tag = letter ? [make("span", { class: `tag ${kind}` }, letter)] : [];
    const text = make("span", {}, make("b", {}, title), ` ${meaning}`);
    return make("li", {}, shape("svg", { ...size, class: `mark ${kind}` }, ...lines), ...tag, text);
  }));
}

/** Which pictures are here, of how many, and what the numbers mean. */
function tellChoice() {
  const start = percent(data.threshold);
  const here = data.images.length === data.total ? "All" : `${data.images.length} of`;
  const said = [`${here} ${data.total} images are on this page`];
  if (data.images.length + data.unread < data.total)
    said[0] +=
      ": the first ones that show each class and each kind of error, then those with the most errors of " +
      `all runs together at a score of ${start}, as many as fit`;
  if (data.unread) said.push(`${data.unread} cannot be read`);
  if (data.unshown.length) said.push(`No room was left for the classes ${data.unshown.join(", ")}`);
  said.push(`The score begins at ${start}, where the mean F1 of the runs is best`);
  said.push("The kinds of error are TIDE's, and are right at every score that is chosen");
  byId("about").textContent = `${said.join(". ")}.`;
}

function readHash() {
  if (!location.hash.startsWith("#gallery?")) return;
  const query = new URLSearchParams(location.hash.slice("#gallery?".length));
  for (const id of Object.keys(START)) {
    const values = [...byId(id).options].map((option) => option.value);
    if (values.includes(query.get(id))) state[id] = query.get(id);
  }
  const score = Number(query.get("score") ?? data.threshold);
  if (score >= 0 && score <= data.steps) state.score = Math.round(score);
  byId("gallery").scrollIntoView();
}

if (data.images) {
  fillControls();
  fillLegend();
  tellChoice();
  readHash();
  let waiting = false;
  const soon = () => {
    if (!waiting) requestAnimationFrame(() => ((waiting = false), update()));
    waiting = true;
  };
  byId("controls").addEventListener("input", ({ target }) => {
    state[target.id] = target.id === "score" ? Number(target.value) : target.value;
    limit = target.id === "score" ? limit : PAGE;
    soon();
  });
  byId("controls").addEventListener("reset", (event) => {
    event.preventDefault();
    Object.assign(state, START, { score: data.threshold });
    limit = PAGE;
    soon();
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    const first = limit;
    limit += PAGE;
    showCards();
    byId("cards").children[first].querySelector(".open").focus();
  });
  addEventListener("resize", () => {
    showCards();
    if (byId("zoom").open) magnify(zoom);
  });
  listenToZoom();
  update();
}
