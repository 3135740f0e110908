"""Widefield: pictures too large to hold, decoded, generated and served tile by tile in a planned memory budget."""

__version__ = "0.1.0"
