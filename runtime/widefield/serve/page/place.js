// Where somebody looks, as a link: what is shown (an id, or what it was drawn from), and x, y, zoom in the picture's pixels.

export function read() {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (words.has(name) && isFinite(words.get(name)) ? Number(words.get(name)) : null);
  const at = { x: number("x"), y: number("y"), zoom: number("zoom") };
  const size = /^([0-9]{1,9})x([0-9]{1,9})$/.exec(words.get("size") ?? "");
  return {
    id: words.get("picture"),
    wish: words.has("prompt") && size
      ? { prompt: words.get("prompt"), seed: words.get("seed") ?? "0", size: [Number(size[1]), Number(size[2])] }
      : null,
    at: Object.values(at).every((value) => value !== null) && at.zoom > 0 ? at : null,
  };
}

export function write(picture, at) {
  const words = new URLSearchParams(
    picture.kind === "drawn"
      ? { prompt: picture.prompt, seed: picture.seed, size: picture.size }
      : { picture: picture.id },
  );
  for (const [name, value] of Object.entries(at)) words.set(name, value);
  history.replaceState(null, "", `#${words}`);
}

export function of(viewer) {
  const item = viewer.world.getItemAt(viewer.world.getItemCount() - 1);
  const centre = item.viewportToImageCoordinates(viewer.viewport.getCenter(true));
  const zoom = item.viewportToImageZoom(viewer.viewport.getZoom(true));
  return { x: Math.round(centre.x), y: Math.round(centre.y), zoom: Number(zoom.toPrecision(4)) };
}

export function go(viewer, at) {
  const item = viewer.world.getItemAt(viewer.world.getItemCount() - 1);
  viewer.viewport.zoomTo(item.imageToViewportZoom(at.zoom), null, true);
  viewer.viewport.panTo(item.imageToViewportCoordinates(at.x, at.y), true);
}

// What is visible, as an address of IIIF: no more pixels than the screen has, nor than the server answers.
export function visible(viewer, picture) {
  const item = viewer.world.getItemAt(viewer.world.getItemCount() - 1);
  const box = item.viewportToImageRectangle(viewer.viewport.getBounds(true));
  const x0 = Math.max(0, Math.floor(box.x)), y0 = Math.max(0, Math.floor(box.y));
  const x1 = Math.min(picture.width, Math.ceil(box.x + box.width));
  const y1 = Math.min(picture.height, Math.ceil(box.y + box.height));
  const width = x1 - x0, height = y1 - y0;
  if (width < 1 || height < 1) return null;
  const screen = item.viewportToImageZoom(viewer.viewport.getZoom(true)) * devicePixelRatio;
  const scale = Math.min(1, screen, Math.sqrt(picture.most_px / (width * height)));
  const w = Math.max(1, Math.floor(width * scale)), h = Math.max(1, Math.floor(height * scale));
  return {
    address: `/iiif/${picture.id}/${x0},${y0},${width},${height}/${w},${h}/0/default.jpg`,
    name: `${picture.name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${x0}-${y0}-${width}x${height}.jpg`,
  };
}
