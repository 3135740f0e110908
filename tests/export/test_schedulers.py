"""Tables of schedulers: run by our rule they are diffusers' own loop, whatever the steps, strength and prediction."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from widefield.errors import BadCheckpoint
from widefield.schedule import update
from widefield_export.denoisers import Window
from widefield_export.samplers import load_scheduler, write_samplers
from widefield_export.schedulers import dynamic_shift, pipeline_arguments, probe

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' NumPy

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = BETAS | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
CASES = {
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    "euler, lightning": lambda: diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "euler, v": lambda: diffusers.EulerDiscreteScheduler(
        **BETAS, prediction_type="v_prediction", use_karras_sigmas=True, rescale_betas_zero_snr=True
    ),
    "euler ancestral, turbo": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "ddim": lambda: diffusers.DDIMScheduler(**DDIM),
    "ddim, v": lambda: diffusers.DDIMScheduler(**DDIM, prediction_type="v_prediction", timestep_spacing="trailing"),
    "ddpm": lambda: diffusers.DDPMScheduler(**BETAS, clip_sample=False),
    "lcm": lambda: diffusers.LCMScheduler(**DDIM),
    "tcd": lambda: diffusers.TCDScheduler(**DDIM),
    "dpm++ 2m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS),
    "dpm++ 2m karras": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True),
    "dpm++ 2m heun": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_type="heun", euler_at_final=True),
    "dpm++ 2m sde": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
    "dpm, flow (SANA)": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    "flow (SD3)": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow (schnell)": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
    "flow (FLUX.1-dev)": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    ),
    "flow, stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True),
}
COUNTS = (1, 2, 4, 15, 28)
TOKENS = 1734  # of a window that is no square


def asked(scheduler):
    return pipeline_arguments(scheduler, tokens=TOKENS, sigmas=bool(scheduler.config.get("use_dynamic_shifting")))


@pytest.fixture(scope="module")
def probed():
    made: dict = {}

    def of(name):
        if name not in made:
            scheduler = CASES[name]()
            made[name] = scheduler, probe(scheduler, counts=COUNTS, arguments=asked(scheduler))
        return made[name]

    return of


def model(x, t):
    """Bends its input, and differs from place to place and from time to time."""
    place = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
    return torch.tanh(0.3 * x.flip(-2) + place) + 0.1 * torch.cos(torch.as_tensor(t, dtype=x.dtype) / 200) * x


def theirs(scheduler, count, strength, start, clean, noise, monkeypatch):
    """(x, the largest number met) of the loop of diffusers' pipelines, image-to-image where `clean` is given."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(**asked(scheduler)(count))
    first = count - min(int(count * strength), count)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    if clean is None:
        x = start * getattr(scheduler, "init_noise_sigma", 1.0)
    elif hasattr(scheduler, "scale_noise"):
        x = scheduler.scale_noise(clean, timesteps[:1], start)
    else:
        x = scheduler.add_noise(clean, start, timesteps[:1])
    drawn = iter(noise[first:])
    latest, largest = [None], float(x.abs().max())
    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: latest[0], raising=False)
    for t in timesteps:
        latest[0] = next(drawn)
        asks = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(asks, t), t, x, return_dict=False)[0]
        largest = max(largest, float(x.abs().max()))
    return x.numpy(), largest


def ours(schedule, count, strength, start, clean, noise):
    run = schedule.run(count, strength)
    first = count - len(run.steps)
    x = run.initial * start if clean is None else run.steps[0].keep * clean + run.steps[0].noise * start
    x, history = np.asarray(x, np.float32), None
    for step, n in zip(run.steps, noise[first:], strict=True):
        m = model(torch.from_numpy(x) * step.input_scale, step.timestep).numpy()
        x, history = update(step, x, m, n.numpy(), history)
        assert x.dtype == np.float32
    return x


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_a_table_is_the_schedulers_own_loop(probed, name, count, monkeypatch):
    scheduler, schedule = probed(name)
    generator = torch.Generator().manual_seed(count)
    start, clean = torch.randn(2, 1, 3, 5, 7, generator=generator)
    noise = torch.randn(count, 1, 3, 5, 7, generator=generator)
    for strength in (1.0, 0.75, 0.51):
        for given in (None, clean) if strength == 1.0 else (clean,):
            if int(count * strength) == 0:
                assert schedule.run(count, strength).steps == ()
                continue
            wanted, largest = theirs(scheduler, count, strength, start, given, noise, monkeypatch)
            found = ours(schedule, count, strength, start, given, noise)
            # A sample of thousands (zero signal-to-noise) loses its last digits in diffusers' own float32.
            rounding = np.finfo(np.float32).eps * largest
            assert np.abs(found - wanted).max() <= max(1e-5 * max(1.0, np.abs(wanted).max()), rounding)


def test_only_what_is_asked_of_a_scheduler_is_in_its_table(probed):
    assert not probed("euler")[1].run(4).draws_noise and not probed("euler")[1].run(4).keeps_history
    assert probed("lcm")[1].run(4).draws_noise and probed("dpm++ 2m sde")[1].run(4).draws_noise
    assert probed("dpm++ 2m")[1].run(4).keeps_history and not probed("dpm++ 2m")[1].run(1).keeps_history
    assert probed("euler")[1].run(28).initial > 10 and probed("flow (SD3)")[1].run(28).initial == 1.0


@pytest.mark.parametrize(
    "scheduler, why",
    [
        (lambda: diffusers.PNDMScheduler(**BETAS), "PNDMScheduler, which is not known"),
        (lambda: diffusers.UniPCMultistepScheduler(**BETAS), "UniPCMultistepScheduler, which is not known"),
        (lambda: diffusers.HeunDiscreteScheduler(**BETAS), "HeunDiscreteScheduler, which is not known"),
        (lambda: diffusers.DDIMScheduler(**BETAS), "DDIMScheduler with this config clips"),
        (lambda: diffusers.DDPMScheduler(**BETAS, clip_sample=False, thresholding=True), "DDPMScheduler .* clips"),
        (lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3), "keeps more than the step before"),
    ],
)
def test_what_is_no_table_is_refused_by_name(scheduler, why):
    with pytest.raises(BadCheckpoint, match=why):
        probe(scheduler(), counts=(15, 20))


def test_more_steps_than_were_distilled_have_no_table():
    assert sorted(probe(CASES["lcm"](), counts=(4, 50, 51, 100)).tables) == [4, 50]


def test_a_probe_leaves_the_scheduler_and_its_module_alone():
    scheduler = CASES["euler ancestral, turbo"]()
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    before, drawn = scheduler.sigmas.clone(), module.randn_tensor
    probe(scheduler, counts=(3,))
    assert module.randn_tensor is drawn and scheduler.sigmas.dtype == torch.float32
    assert torch.equal(scheduler.sigmas, before)


def test_the_shift_grows_with_the_window():
    config = CASES["flow (FLUX.1-dev)"]().config
    assert dynamic_shift(config, 256) == pytest.approx(0.5) and dynamic_shift(config, 4096) == pytest.approx(1.15)
    small, large = (
        probe(
            CASES["flow (FLUX.1-dev)"](),
            counts=(4,),
            arguments=pipeline_arguments(CASES["flow (FLUX.1-dev)"](), tokens=n, sigmas=True),
        )
        for n in (256, 4096)
    )
    assert small.tables[4][1, 0] < large.tables[4][1, 0]


def test_other_samplers_are_those_that_diffusers_makes_of_the_config(tmp_path):
    """What a published config leaves out is the other class's default; what it says stays; nothing is clipped."""
    config = BETAS | {"_class_name": "PNDMScheduler", "steps_offset": 1, "skip_prk_steps": True}
    scheduler = load_scheduler(config, tmp_path)
    made = write_samplers(tmp_path, scheduler, [(Window(8, 8), 64)], sigmas=False, counts=(4,))
    assert made["default"] == "dpmpp_2m" and set(made["samplers"]) == {"dpmpp_2m", "euler", "euler_ancestral", "ddim"}
    wanted = probe(diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config), counts=(4,))
    np.testing.assert_array_equal(load_file(tmp_path / made["file"])["dpmpp_2m/4"], wanted.tables[4])
    assert made["samplers"]["dpmpp_2m"]["config"]["timestep_spacing"] == "linspace"
    assert made["samplers"]["ddim"]["config"]["clip_sample"] is False


def test_a_sampler_may_be_chosen(tmp_path):
    made = write_samplers(tmp_path, CASES["euler"](), [(Window(8, 8), 64)], sigmas=False, chosen="lcm", counts=(4,))
    assert made["default"] == "lcm" and made["samplers"]["lcm"]["class"] == "LCMScheduler"


def test_a_flow_that_shifts_with_the_window_has_tables_for_each(tmp_path):
    windows = [(Window(16, 16), 64), (Window(64, 96), 1536)]
    made = write_samplers(tmp_path, CASES["flow (FLUX.1-dev)"](), windows, sigmas=True, counts=(4,))
    assert made["samplers"]["flow_euler"]["keys"] == ["flow_euler@16x16", "flow_euler@64x96"]
    tables = load_file(tmp_path / made["file"])
    assert tables["flow_euler@16x16/4"][1, 0] < tables["flow_euler@64x96/4"][1, 0]


def test_a_flow_that_is_no_table_says_which_would_be(tmp_path):
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW)
    with pytest.raises(BadCheckpoint, match=r"a flow that is no table; .* --sampler flow_euler"):
        write_samplers(tmp_path, scheduler, [(Window(8, 8), 64)], sigmas=False)
    with pytest.raises(BadCheckpoint, match="has class None; wanted a scheduler of diffusers"):
        load_scheduler({}, tmp_path)
