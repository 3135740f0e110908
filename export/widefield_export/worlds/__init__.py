"""Procedural worlds seen from above: the endless, seeded pictures and captions that the small pipeline learns from.

A world is a pure function of (seed, position, scale): `render.render(world, sky, y, x, size_px, metres_per_px)`.
"""
