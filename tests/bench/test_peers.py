"""Peers are given the same weights and give the same picture, each in its own way; who cannot is a row."""

import numpy as np
import pytest

from widefield_bench.decode_run import DecodeCase, run_case
from widefield_bench.peers import PEERS, prepare

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


@pytest.mark.parametrize("who", [pytest.param(w, marks=[pytest.mark.slow] * (w == "compiled")) for w in PEERS])
def test_every_peer_decodes_the_same(tiny, latents, who):
    z = np.load(latents(9, 13))
    found, wanted = (prepare(name, str(tiny[1]), z, 1)() for name in (who, "untiled"))
    assert found.shape == (3, 72, 104)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_a_peer_that_is_unknown_is_named(tiny, latents):
    with pytest.raises(ValueError, match="no peer 'whole'"):
        prepare("whole", str(tiny[1]), np.load(latents(9, 13)), 1)


def test_who_is_refused_memory_has_failed(tiny, latents):
    """Untiled 1536 x 1024 px of 4 channels want more than 8 MiB."""
    found = run_case(DecodeCase("untiled", str(latents(192, 128)), 1, str(tiny[1]), limit="8MiB"))
    assert list(found) == ["failed"] and "alloc" in found["failed"]


def test_who_takes_too_long_has_failed(tiny, latents):
    assert run_case(DecodeCase("untiled", str(latents(9, 13)), 1, str(tiny[1])), timeout_s=0.01) == {
        "failed": "not done in 0 s"
    }
