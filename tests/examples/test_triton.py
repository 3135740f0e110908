"""examples/triton: model.py with a stand-in for what exists inside the server alone; config.pbtxt by its protocol."""

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import widefield
from house.places import ROOT

FOLDER = ROOT / "examples/triton/models/widefield"
PROMPT, SIZE, FINAL = "a desert coast at dawn", (390, 270), 1
PARAMETERS = {"bundle": "", "memory": "2GiB", "tile_px": "128"}


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        self.name, self._array = name, array

    def as_numpy(self) -> np.ndarray:
        return self._array


class Failure(str):
    """TritonError: a message and a code."""

    CANCELLED, INVALID_ARG, INTERNAL = "CANCELLED", "INVALID_ARG", "INTERNAL"

    def __new__(cls, message: str, code: str) -> "Failure":
        made = super().__new__(cls, message)
        made.code = code
        return made


class Response:
    def __init__(self, output_tensors=(), error=None) -> None:
        self.tensors = {tensor.name: tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Request:
    """Also its own sender. `patience`: how often it may be asked whether it was cancelled before it was."""

    def __init__(self, patience: int = 1 << 30, **inputs: np.ndarray) -> None:
        self.inputs, self.patience = inputs, patience
        self.responses, self.over = [], 0

    def get_response_sender(self) -> "Request":
        return self

    def is_cancelled(self) -> bool:
        self.patience -= 1
        return self.patience < 0

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        assert not self.over, "nothing is sent after the end"
        if response is not None:
            self.responses.append(response)
        self.over += flags == FINAL


def asked(**inputs) -> Request:
    patience = inputs.pop("patience", 1 << 30)
    given = {"prompt": np.array([PROMPT.encode()], object), "size": np.array(SIZE, np.int32)}
    given |= {name: np.array(value, np.int64 if name == "seed" else np.int32) for name, value in inputs.items()}
    return Request(patience, **given)


@pytest.fixture(scope="module")
def model():
    """model.py as the server loads it."""
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.Tensor, stand_in.TritonError, stand_in.InferenceResponse = Tensor, Failure, Response
    stand_in.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    stand_in.get_input_tensor_by_name = lambda request, name: (
        Tensor(name, request.inputs[name]) if name in request.inputs else None
    )
    sys.modules[stand_in.__name__] = stand_in
    spec = importlib.util.spec_from_file_location("triton_model", FOLDER / "1/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parameters = {name: {"string_value": value} for name, value in PARAMETERS.items()}
    made = module.TritonPythonModel()
    made.initialize({"model_config": json.dumps({"parameters": parameters}), "model_name": "widefield"})
    yield made
    made.finalize()
    del sys.modules[stand_in.__name__]


@pytest.fixture(scope="module")
def wanted():
    """The library's own read of all of it."""
    return np.asarray(widefield.open().generate(PROMPT, size=SIZE, seed=3))


def mosaic(request: Request, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    """The tiles put together; each pixel once."""
    image, seen = np.zeros((y1 - y0, x1 - x0, 3), np.uint8), np.zeros((y1 - y0, x1 - x0), int)
    for response in request.responses:
        tile, (y, x) = response.tensors["pixels"], response.tensors["place"]
        assert tile.dtype == np.uint8 and response.error is None
        part = slice(y - y0, y - y0 + tile.shape[0]), slice(x - x0, x - x0 + tile.shape[1])
        image[part], seen[part] = tile, seen[part] + 1
    assert (seen == 1).all()
    return image


def alike(found: np.ndarray, wanted: np.ndarray) -> None:
    """At most one step apart, at one value in ten thousand: tiles that were computed apart."""
    apart = np.abs(found.astype(int) - wanted.astype(int))
    assert apart.max() <= 1 and np.count_nonzero(apart) <= apart.size // 10_000


def test_tiles_of_a_request_are_the_picture(model, wanted):
    request = asked(seed=[3])
    assert model.execute([request]) is None
    assert request.over == 1 and len(request.responses) == 3 * 4
    alike(mosaic(request, 0, 270, 0, 390), wanted)


def test_a_region_is_cut_from_the_same_tiles_and_requests_follow_one_another(model, wanted):
    first, second = asked(seed=[3], region=[100, 141, 200, 390]), asked(seed=[4], region=[0, 50, 0, 60])
    model.execute([first, second])
    assert (first.over, second.over, len(first.responses), len(second.responses)) == (1, 1, 6, 1)
    alike(mosaic(first, 100, 141, 200, 390), wanted[100:141, 200:])
    other = mosaic(second, 0, 50, 0, 60).astype(int) - wanted[:50, :60]
    assert np.abs(other).max() > 1, "another seed is another picture"


def test_a_client_that_cancels_stops_its_picture(model):
    request = asked(patience=3)
    model.execute([request])
    assert request.over == 1 and len(request.responses) == 1
    assert request.responses[0].error.code == "CANCELLED"


@pytest.mark.parametrize("inputs, said", [
    ({"region": [0, 10, 0, 400]}, "wanted a part of 270 rows and 390 columns"),
    ({"region": [9, 9, 0, 10]}, "wanted a part"), ({"size": [0, 10]}, ""), ({"size": [1 << 30, 10]}, "larger than any"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_one_error(model, inputs, said):
    request = asked(**inputs)
    model.execute([request])
    (response,) = request.responses
    assert request.over == 1 and response.error.code == "INVALID_ARG" and said in response.error


def test_tritons_own_protocol_reads_the_configuration():
    protocol = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install 'tritonclient[grpc]'")
    from google.protobuf import text_format

    config = text_format.Parse((FOLDER / "config.pbtxt").read_text(), protocol.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == (FOLDER.name, "python", 0)
    assert config.model_transaction_policy.decoupled
    kinds = {each.name: (protocol.DataType.Name(each.data_type), list(each.dims)) for each in config.input}
    assert kinds == {
        "prompt": ("TYPE_STRING", [1]), "size": ("TYPE_INT32", [2]), "seed": ("TYPE_INT64", [1]),
        "region": ("TYPE_INT32", [4]),
    }  # fmt: skip
    assert [each.name for each in config.input if each.optional] == ["seed", "region"]
    outputs = {each.name: (protocol.DataType.Name(each.data_type), list(each.dims)) for each in config.output}
    assert outputs == {"pixels": ("TYPE_UINT8", [-1, -1, 3]), "place": ("TYPE_INT32", [2])}
    assert set(config.parameters) == set(PARAMETERS)
    given = SimpleNamespace(**{name: each.string_value for name, each in config.parameters.items()})
    assert (given.bundle, given.tile_px) == ("", "512")
