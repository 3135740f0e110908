"""What prompts are measured by, and a small run of it."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from widefield_bench import likeness, prompts
from widefield_export.worlds.draw import HELD_OUT

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(diffusers|huggingface_hub|transformers).*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning"),
]


def fractal(side, power, seed):
    """Grey noise whose power falls as cycles to `power`, in [0, 1]."""
    cycles = np.hypot(*np.meshgrid(*[np.fft.fftfreq(side, 1 / side)] * 2))
    cycles[0, 0] = np.inf
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal((side, side))) * cycles ** (power / 2)
    values = np.fft.ifft2(noise).real
    return np.repeat(np.clip(0.5 + 0.15 * values / values.std(), 0, 1)[..., None], 3, 2)


@pytest.mark.parametrize("power", [-2.0, -3.0])
def test_a_fractals_slope_is_its_own(power):
    found = np.mean([likeness.slope(fractal(256, power, seed)) for seed in range(8)])
    assert found == pytest.approx(power, abs=0.25)


def test_a_set_is_like_itself_and_less_like_another():
    one, other = ([fractal(72, power, seed) for seed in range(3)] for power in (-2.5, -3.5))
    same = likeness.likeness(one, one)
    assert all(same[key] == 0 for key in ("slope_off", "fine_off", "colours", "patches"))
    unlike = likeness.likeness(other, one)
    assert unlike["slope_off"] < -0.5 and unlike["fine_off"] < 0 and unlike["patches"] > 0.2
    blurred = likeness.likeness([gaussian_filter(p, (2, 2, 0)) for p in one], one)
    assert blurred["fine_off"] < -1 and blurred["patches"] > 0.5
    assert likeness.likeness([np.zeros((40, 40, 3))], [np.full((40, 40, 3), 0.99)])["colours"] == 1


def test_waves_are_orthonormal_and_see_squares_at_their_places():
    np.testing.assert_allclose(likeness.waves() @ likeness.waves().T, np.eye(8), atol=1e-12)
    stripes = np.zeros((16, 24, 24, 3))[0]
    stripes[::2] = 1.0  # across rows alone
    energy = likeness.patches([stripes]).tolist()
    down, across = energy[8 * 7 - 1], energy[7 - 1]
    assert down > -1 and across < -9


def test_properties_are_of_colours():
    blue, red, green, white = (
        np.tile(np.array(c, float), (3, 5, 1)) for c in ((0, 0, 1), (1, 0, 0), (0, 1, 0), (1,) * 3)
    )
    assert prompts.water(blue) == 1 and prompts.water(red) == prompts.water(white) == 0
    assert prompts.warm(red) == 1 and prompts.warm(blue) == -1 and prompts.warm(white) == 0
    assert prompts.green(green) == 1 and prompts.green(white) == 0
    assert prompts.white(white) == prompts.bright(white) == pytest.approx(1) and prompts.white(green) == 0


def test_an_effect_is_in_deviations():
    rng = np.random.default_rng(0)
    low, high = rng.normal(3, 2, 5000), rng.normal(5, 2, 5000)
    assert prompts.effect(low, high) == pytest.approx(1, abs=0.05)
    assert prompts.effect(high, low) == pytest.approx(-1, abs=0.05)


def test_what_is_held_out_is_never_drawn_for_training():
    assert frozenset(prompts.HELD_OUT) in HELD_OUT
    assert prompts.meetings(prompts.HELD_OUT, 3000) == 0
    assert prompts.meetings(("rainforest", "dawn"), 3000) > 10 and prompts.meetings(("mountains", "dusk"), 3000) > 10


def test_a_small_run_writes_every_row(tmp_path, capsys):
    asked = ["--seeds", "2", "--steps", "2", "--pictures", "1", "--side", "128", "--scenes", "50", "-o", str(tmp_path)]
    assert prompts.main(asked) == 0
    made = json.loads((tmp_path / "prompts.json").read_text())
    assert made["about"]["held_out"] == {"pair": ["rainforest", "dusk"], "scenes": 50, "seen": 0}
    concepts = [row for row in made["rows"] if "concept" in row]
    assert len(concepts) == 10 and all(np.isfinite(row["effect"]) for row in concepts)
    by_name = {row["concept"]: row for row in concepts}
    assert by_name["night"]["mean_given"] < by_name["night"]["mean_without"]
    assert [row["pictures"] for row in made["rows"][10:]] == ["drawn", "level 0, bicubic", "floor"]
    assert "rainforest and dusk meet in 0 of 50 scenes" in capsys.readouterr().out
