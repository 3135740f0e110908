// A picture as OpenSeadragon asks for it: the levels that cost no more than their tiles, the smallest first.

export function levelsOf(picture) {
  const wide = Math.max(picture.width, picture.height);
  const descending = [...picture.levels].sort((a, b) => b - a);
  const first = descending.findIndex((level, i) => {
    const next = descending[i + 1];
    return next === undefined || Math.ceil(wide / 2 ** next) > picture.tile;
  });
  return descending.slice(first);
}

// Of a picture that is being made: which tiles are there. Others are not asked for.
export class Marks {
  constructor(picture, packed) {
    this.picture = picture;
    this.bits = Object.fromEntries(
      Object.entries(packed).map(([level, text]) => [level, Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]),
    );
  }

  number(level, row, column) {
    return row * Math.ceil(Math.ceil(this.picture.width / 2 ** level) / this.picture.tile) + column;
  }

  has(level, row, column) {
    const bits = this.bits[level], at = this.number(level, row, column);
    return !bits || ((bits[at >> 3] >> (7 - (at & 7))) & 1) === 1;
  }

  add([level, row, column]) {
    const bits = this.bits[level], at = this.number(level, row, column);
    if (bits) bits[at >> 3] |= 128 >> (at & 7);
  }
}

export function sourceOf(picture, marks) {
  const levels = levelsOf(picture);
  return {
    ...(marks && { tileExists: (index, x, y) => marks.has(levels[index], y, x) }),
    width: picture.width,
    height: picture.height,
    tileSize: picture.tile,
    tileOverlap: 0,
    minLevel: 0,
    maxLevel: levels.length - 1,
    getLevelScale: (index) => 1 / 2 ** levels[index],
    getTileUrl: (index, x, y) =>
      `/dzi/${picture.id}_files/${picture.deepest - levels[index]}/${x}_${y}.${picture.form}`,
  };
}

// OpenSeadragon gives up on a tile that was not there; it has no call for "it is now" (its issue 2740). These are fields
// of its own, the same in all of 6.x; a test in a browser holds us to them.
export function revive(item, picture, tiles, marks) {
  const levels = levelsOf(picture);
  const again = (tile) => {
    if (tile && !tile.exists && marks.has(levels[tile.level], tile.y, tile.x)) {
      tile.exists = true;
      tile.loading = false;
    }
  };
  if (tiles.length) {
    for (const [level, row, column] of tiles) {
      again(item.tilesMatrix[levels.indexOf(level)]?.[column]?.[row]);
    }
  } else {
    for (const level of Object.values(item.tilesMatrix)) {
      for (const column of Object.values(level)) Object.values(column).forEach(again);
    }
  }
  item._needsUpdate = true;
  item.viewer.forceRedraw();
}
