// The page: one picture at a time, where it is, how it gets on, and what may be done with it.

import { Marks, revive, sourceOf } from "./source.js";
import * as place from "./place.js";

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
let viewer = null, picture = null, marks = null, events = null, draws = false, preview = null;

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

async function json(address, options) {
  const answer = await fetch(address, options);
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server answered ${answer.status}`);
  return answer.json();
}

function draw(wish) {
  return json("/pictures", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(wish),
  });
}

async function wanted() {
  const asked = place.read();
  const all = await json("/pictures");
  draws = all.draws;
  $("new").hidden = !draws;
  if (asked.id) return await json(`/pictures/${encodeURIComponent(asked.id)}`);
  if (asked.wish && draws) return await draw(asked.wish);
  return all.pictures.find((each) => each.id === all.first) ?? all.pictures.at(-1) ?? null;
}

async function seen() {
  return new Marks(picture, await json(`/pictures/${picture.id}/marks`));
}

async function open(found, at) {
  events?.close();
  viewer?.destroy();
  picture = found;
  preview = null;
  marks = picture.kind === "stored" && picture.state.busy ? await seen() : null;
  $("name").textContent = document.title = picture.name;
  viewer = OpenSeadragon({
    element: $("view"),
    tileSources: sourceOf(picture, marks),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: innerWidth > 900 && innerHeight > 600,
    navigatorPosition: "TOP_RIGHT",
    navigatorSizeRatio: 0.14,
    navigatorBackground: "#0b0f12",
    navigatorBorderColor: "#ffffff1f",
    navigatorDisplayRegionColor: "#8fc7d8",
    navigatorOpacity: 1,
    maxZoomPixelRatio: 8,
    minZoomImageRatio: 0.8,
    visibilityRatio: 0.4,
    imageLoaderLimit: picture.kind === "drawn" ? 3 : 5, // browsers open six connections, and events take one
    timeout: 600000,
    tileRetryMax: picture.kind === "drawn" ? 20 : 0,
    tileRetryDelay: 2500,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  viewer.addHandler("open", () => {
    if (at) place.go(viewer, at);
    viewer.canvas.setAttribute("tabindex", "0");
    moved();
  });
  viewer.addHandler("open-failed", (event) => say(event.message));
  viewer.addHandler("viewport-change", moved);
  viewer.addHandler("animation-finish", remember);
  viewer.addHandler("canvas-key", keyed);
  follow();
  window.widefield = { viewer, picture }; // for the console, and for tests
}

let pointed = null;
function moved() {
  if (!viewer?.world.getItemCount()) return;
  const at = place.of(viewer);
  const zoom = at.zoom >= 1 ? `${Number(at.zoom.toPrecision(3))} : 1` : `1 : ${number.format(Number((1 / at.zoom).toPrecision(3)))}`;
  const { x, y } = pointed ?? at;
  $("place").textContent = `x ${number.format(x)} · y ${number.format(y)} · ${zoom}`;
}

let later = 0;
function remember() {
  clearTimeout(later);
  later = setTimeout(() => viewer.world.getItemCount() && place.write(picture, place.of(viewer)), 200);
}

function follow() {
  state(picture.state);
  events = new EventSource(`/pictures/${picture.id}/events`);
  events.addEventListener("state", (event) => state(JSON.parse(event.data)));
  events.addEventListener("tiles", async (event) => {
    const tiles = JSON.parse(event.data);
    if (!marks) return;
    if (tiles.length) tiles.forEach((tile) => marks.add(tile));
    else marks.bits = (await seen()).bits;
    const item = viewer.world.getItemAt(viewer.world.getItemCount() - 1);
    if (item) revive(item, picture, tiles, marks);
    glimpse();
  });
}

function state(now) {
  const bar = $("progress"), size = `${number.format(picture.width)} × ${number.format(picture.height)} px`;
  bar.hidden = !now.busy;
  if (picture.kind === "drawn") {
    bar.classList.toggle("busy", now.busy);
    const waiting = now.waiting ? `, ${now.waiting} waiting` : "";
    say(now.busy ? `${size} · drawing ${now.drawing} ${now.drawing === 1 ? "tile" : "tiles"}${waiting}` : size);
    return;
  }
  const share = now.done / Math.max(1, now.total);
  bar.classList.remove("busy");
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.firstElementChild.style.transform = `scaleX(${share})`;
  say(now.busy ? `${size} · ${number.format(now.done)} of ${number.format(now.total)} tiles` : size);
  if (now.busy && now.done && preview === null) glimpse();
}

// Under a picture that is being made lies what there is of it, small, and new every three seconds while that grows.
async function glimpse() {
  if (picture.kind === "drawn" || preview === "on its way" || !viewer) return;
  const shown = picture;
  preview = "on its way";
  try {
    const answer = await fetch(`/pictures/${picture.id}/preview.jpeg`);
    if (answer.ok && picture === shown) {
      const old = viewer.world.getItemCount() > 1 ? viewer.world.getItemAt(0) : null;
      viewer.addTiledImage({
        tileSource: { type: "image", url: URL.createObjectURL(await answer.blob()), buildPyramid: false },
        index: 0, width: 1,
        success: () => old && setTimeout(() => viewer.world.removeItem(old), 300),
      });
    }
  } finally {
    setTimeout(() => (preview = "shown"), 3000);
  }
}

// What may be done.

const tools = {
  in: () => viewer.viewport.zoomBy(2).applyConstraints(),
  out: () => viewer.viewport.zoomBy(0.5).applyConstraints(),
  whole: () => viewer.viewport.goHome(),
  pixel: () => {
    const item = viewer.world.getItemAt(viewer.world.getItemCount() - 1);
    viewer.viewport.zoomTo(item.imageToViewportZoom(1 / devicePixelRatio));
  },
  link: async () => {
    place.write(picture, place.of(viewer));
    try {
      await navigator.clipboard.writeText(location.href);
      say("The link is copied.");
    } catch {
      say("The link is in the address bar.");
    }
  },
  save: () => {
    const found = place.visible(viewer, picture);
    if (!found) return;
    const link = document.createElement("a");
    link.href = found.address;
    link.download = found.name;
    link.click();
    say("Downloading what you see…");
  },
  new: () => {
    if (!draws) return;
    if (picture?.kind === "drawn") $("prompt").value = picture.prompt;
    $("fault").textContent = "";
    $("ask").showModal();
    $("prompt").focus();
  },
  keys: () => $("help").showModal(),
};
const KEYS = { "+": "in", "=": "in", "-": "out", 0: "whole", 1: "pixel", l: "link", d: "save", n: "new", "?": "keys" };

function keyed(event) {
  // OpenSeadragon has the arrows. Ours come first, and nothing turns or mirrors the picture.
  event.preventDefaultAction = event.originalEvent.key in KEYS || /^[rf]$/i.test(event.originalEvent.key);
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  const tool = KEYS[event.key];
  if (viewer || tool === "new" || tool === "keys") tools[tool]();
  event.preventDefault();
});

for (const [name, act] of Object.entries(tools)) $(name).addEventListener("click", () => (viewer || name === "new" || name === "keys") && act());
$("cancel").addEventListener("click", () => $("ask").close());
$("close").addEventListener("click", () => $("help").close());
$("view").addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" || !viewer?.world.getItemCount()) return;
  const item = viewer.world.getItemAt(viewer.world.getItemCount() - 1);
  const at = item.viewerElementToImageCoordinates(new OpenSeadragon.Point(event.clientX, event.clientY));
  const inside = at.x >= 0 && at.y >= 0 && at.x < picture.width && at.y < picture.height;
  pointed = inside ? { x: Math.floor(at.x), y: Math.floor(at.y) } : null;
  moved();
});
$("view").addEventListener("pointerleave", () => ((pointed = null), moved()));

$("wish").addEventListener("submit", async (event) => {
  event.preventDefault();
  const send = event.submitter ?? $("wish").querySelector("[type=submit]");
  const [width, height] = $("size").value.split("x").map(Number);
  send.disabled = true;
  try {
    await open(await draw({ prompt: $("prompt").value.trim(), seed: $("seed").value, size: [width, height] }), null);
    place.write(picture, {});
    $("ask").close();
  } catch (error) {
    $("fault").textContent = error.message;
  } finally {
    send.disabled = false;
  }
});

async function begin() {
  if (!window.OpenSeadragon) {
    say("This installation has tiles and no viewer: OpenSeadragon was not there when it was built.");
    return;
  }
  try {
    const found = await wanted();
    if (found) await open(found, place.read().at);
    else {
      say("Nothing is shown yet.");
      tools.new();
    }
  } catch (error) {
    say(error.message);
    if (draws) tools.new();
  }
}

begin();
