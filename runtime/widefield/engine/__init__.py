"""Engines run one graph with fixed shapes. A backend is imported when it is asked for."""

from widefield.engine.base import BACKENDS, Engine, EngineOptions, open_engine

__all__ = ["BACKENDS", "Engine", "EngineOptions", "open_engine"]
