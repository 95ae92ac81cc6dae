// ---- The enlarged picture

let at = 0;
let zoom = 1;
const stages = () => [...byId("stages").children];

function openZoom(index) {
  at = index;
  zoom = 1;
  const { image } = listed[at];
  byId("zoom-title").replaceChildren(make("bdi", {}, image.file), ` (${at + 1} of ${listed.length})`);
  byId("stages").replaceChildren(...runsShown().map((run) => {
    const name = data.runs[run];
    const attributes = { class: "stage", tabindex: 0, role: "group", "aria-label": name };
    const stage = make("div", attributes, pictureOf(image, image.file));
    stage.addEventListener("scroll", () => follow(stage));
    const numbers = `: ${summary(listed[at], run)}`;
    const caption = make("figcaption", {}, make("bdi", { class: "run" }, name), numbers);
    return make("figure", { "data-run": run }, caption, stage);
  }));
  if (!byId("zoom").open) byId("zoom").showModal();
  byId("previous").disabled = at === 0;
  byId("next").disabled = at === listed.length - 1;
  magnify(1);
  const focused = document.activeElement; // keys would go nowhere
  if (!byId("zoom").contains(focused) || focused.disabled) byId("stages").querySelector(".stage").focus();
}

/** All stages at the same zoom; `point` of each, else its middle, stays where it is. */
function magnify(value, point) {
  const before = zoom;
  zoom = Math.max(1, Math.min(value, 16));
  const { width, height } = listed[at].image;
  for (const figure of stages()) {
    const stage = figure.querySelector(".stage");
    const edge = stage.getBoundingClientRect();
    const [left, top] = point ?? [edge.width / 2, edge.height / 2];
    const [toLeft, toTop] = [stage.scrollLeft + left, stage.scrollTop + top].map((v) => (v * zoom) / before);
    const fit = Math.min(stage.clientWidth, (stage.clientHeight * width) / height);
    const picture = stage.querySelector(".picture");
    picture.style.width = `${Math.floor(fit * zoom)}px`;
    draw(picture, listed[at], Number(figure.dataset.run), byId("labels").checked);
    stage.scrollTo(toLeft - left, toTop - top);
  }
  byId("smaller").disabled = zoom === 1;
}

function follow(moved) {
  for (const stage of byId("stages").querySelectorAll(".stage"))
    if (stage !== moved && (stage.scrollLeft !== moved.scrollLeft || stage.scrollTop !== moved.scrollTop))
      stage.scrollTo(moved.scrollLeft, moved.scrollTop);
}

const step = (by) => {
  if (listed[at + by]) openZoom(at + by);
};

function zoomKey(event) {
  const pan = { ArrowLeft: [-60, 0], ArrowRight: [60, 0], ArrowUp: [0, -60], ArrowDown: [0, 60] }[event.key];
  const first = byId("stages").querySelector(".stage");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.shiftKey && pan) first.scrollBy(...pan);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "+" || event.key === "=") magnify(zoom * 1.5);
  else if (event.key === "-") magnify(zoom / 1.5);
  else if (event.key === "0") magnify(1);
  else return;
  event.preventDefault();
}

function listenToZoom() {
  const dialog = byId("zoom");
  dialog.addEventListener("keydown", zoomKey);
  dialog.addEventListener("close", () => {
    if (at >= limit) limit = Math.ceil((at + 1) / PAGE) * PAGE;
    showCards();
    cardOf(listed[at].image).querySelector(".open").focus();
  });
  byId("close").addEventListener("click", () => dialog.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("larger").addEventListener("click", () => magnify(zoom * 1.5));
  byId("smaller").addEventListener("click", () => magnify(zoom / 1.5));
  byId("labels").addEventListener("change", () => magnify(zoom));
  const stage = byId("stages");
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const edge = (event.target.closest(".stage") ?? stages()[0]).getBoundingClientRect();
    magnify(zoom * (event.deltaY < 0 ? 1.25 : 0.8), [event.clientX - edge.left, event.clientY - edge.top]);
  }, { passive: false });
  stage.addEventListener("pointermove", (event) => {
    const moved = event.target.closest(".stage");
    const dragged = event.buttons === 1 && event.pointerType === "mouse"; // a finger scrolls by itself
    if (moved && dragged) moved.scrollBy(-event.movementX, -event.movementY);
  });
}
