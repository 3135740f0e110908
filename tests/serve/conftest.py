"""Pictures on disk to serve."""

import pytest

from serve.pictures import stored


@pytest.fixture(scope="session")
def jpeg(tmp_path_factory):
    """(path, the pixels it was made of): 1300 x 901 px in JPEG tiles of 256."""
    return stored(tmp_path_factory.mktemp("serve") / "coast.tif", 1300, 901, "jpeg")


@pytest.fixture(scope="session")
def lossless(tmp_path_factory):
    """The same in a .zarr."""
    return stored(tmp_path_factory.mktemp("serve") / "coast.zarr", 1300, 901, "lossless")
