"""Widefield in Triton Inference Server: Python backend, decoupled, one response a tile, in Morton order.

A request is drawn tile by tile, and each is sent as soon as it is there. It stops within a step of a window when its
client cancels. Tiles are those of the whole picture, so requests for parts of one picture fit together.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import widefield
from widefield.errors import BadRequest, Cancelled, OverBudget, WidefieldError
from widefield.geometry import Region, morton_order


class TritonPythonModel:
    """What the server calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle. The server shows a fault of it as the reason why the model is not ready."""
        given = json.loads(args["model_config"])["parameters"]
        said = {name: value["string_value"] for name, value in given.items()}
        self.model = widefield.open(said["bundle"] or None)
        self.memory, self.tile_px = said["memory"], int(said["tile_px"])

    def execute(self, requests: list[Any]) -> None:
        """Draw one after the other. Whatever happens to a request, its last response says that it is over."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._draw(request, sender)
            except WidefieldError as fault:
                error = pb_utils.TritonError(str(fault), _code(fault))
                sender.send(pb_utils.InferenceResponse(error=error))
            finally:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _draw(self, request: Any, sender: Any) -> None:
        width, height = (int(n) for n in _array(request, "size", None))
        prompt = _array(request, "prompt", None)[0].decode(errors="replace")
        seed = int(_array(request, "seed", [0])[0])
        y0, y1, x0, x1 = (int(n) for n in _array(request, "region", [0, height, 0, width]))
        region = Region(y0, x0, y1, x1)
        if not region or not region.within(Region(0, 0, height, width)):
            raise BadRequest(
                f"region {y0}:{y1},{x0}:{x1} was asked for; wanted a part of {height} rows and {width} columns; mend it"
            )
        with self.model.generate(prompt, size=(width, height), seed=seed, memory=self.memory) as picture:
            for tile in tiles(region, self.tile_px):
                pixels = picture.read(tile, cancelled=sender.is_cancelled)
                place = np.array([tile.y0, tile.x0], np.int32)
                tensors = [pb_utils.Tensor("pixels", pixels), pb_utils.Tensor("place", place)]
                sender.send(pb_utils.InferenceResponse(output_tensors=tensors))

    def finalize(self) -> None:
        """Nothing is open between requests."""


def tiles(region: Region, side: int) -> list[Region]:
    """The tiles of the picture's grid that meet a region, cut to it; neighbours mostly follow one another."""
    top, left = region.y0 // side, region.x0 // side
    rows, columns = -(-region.y1 // side) - top, -(-region.x1 // side) - left
    places = ((y + top, x + left) for y, x in morton_order(rows, columns))
    return [Region(y * side, x * side, (y + 1) * side, (x + 1) * side).clipped(region) for y, x in places]


def _code(fault: WidefieldError) -> Any:
    """What the server calls it."""
    if isinstance(fault, Cancelled):
        return pb_utils.TritonError.CANCELLED
    return (
        pb_utils.TritonError.INVALID_ARG
        if isinstance(fault, (BadRequest, OverBudget))
        else pb_utils.TritonError.INTERNAL
    )


def _array(request: Any, name: str, default: list[int] | None) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy()
