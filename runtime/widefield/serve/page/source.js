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

export function sourceOf(picture) {
  const levels = levelsOf(picture);
  return {
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
export function revive(item, picture, tiles) {
  const levels = levelsOf(picture);
  const again = (tile) => {
    if (tile && !tile.exists) {
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
