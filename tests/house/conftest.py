"""What pyproject.toml says, for the tests of the house."""

import tomllib
from typing import Any

import pytest

from house.places import ROOT


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """The [project] table."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="session")
def extras(project: dict[str, Any]) -> set[str]:
    """Names of the extras."""
    return set(project["optional-dependencies"])
