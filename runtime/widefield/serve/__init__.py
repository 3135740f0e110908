"""A tile server and a viewer: Deep Zoom and IIIF over a stored picture, or over one drawn where it is looked at.

    pyramid, iiif      what is asked for: sizes, tiles, the words of a URL. Pure
    served             one interface, `Served`: a tile by (level, row, column)
    stored, lazy       its two kinds: a .tif, .zarr or .dzi; a drawn picture, whose tiles are kept in tile_cache
    flights            every tile is made once, however many wait for it, and not at all when nobody does
    desk, gallery      which drawn pictures hold engines and memory; pictures by their ids
    regions            any part at any size, put together of tiles
    guard, metrics, events, app, run    the web: what is let in, counted, told; the routes; the process

Starlette and uvicorn, the extra `serve`, are imported in the last row alone.
"""
