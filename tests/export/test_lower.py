"""The localising pass: margins derived by hand, faults that name op, node and module, rewrites that change nothing."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from families import make
from widefield.errors import BadCheckpoint, UnsupportedGraph
from widefield_export.execute import run_segment
from widefield_export.families import Coder, Decoder, localise
from widefield_export.lower import Lowering
from widefield_export.program import Program
from widefield_export.rewrites import collapse_shapes, fold_upsampling, merge_linear, phases
from widefield_export.rules import RULES
from widefield_export.segments import Segment, cut, flops


def lower(module: nn.Module, channels: int = 4) -> Program:
    batch = torch.export.Dim("batch", min=2, max=63)
    rows, columns = (torch.export.Dim(n, min=4, max=4096) for n in ("rows", "columns"))
    example = torch.zeros(2, channels, 12, 20)
    with torch.no_grad():
        exported = torch.export.export(
            module.eval(), (example,), dynamic_shapes=({0: batch, 2: rows, 3: columns},), strict=False
        )
    return Lowering(exported, "decoder", RULES).run()


def whole(program: Program, x: torch.Tensor, parameters: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Run a program without attentions on one tile that is the whole picture."""
    margin = program.margin_cells
    grown = nn.functional.pad(x, [margin] * 4)
    inside = nn.functional.pad(torch.ones_like(x[:, :1]), [margin] * 4)
    (segment,) = cut(program, [])
    return run_segment(program, segment, {program.input: grown}, parameters or {}, inside)[program.output]


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    ("layers", "margin"),
    [
        ([nn.Conv2d(4, 4, 3, padding=1)], 1),
        ([nn.Conv2d(4, 4, 1)], 0),
        ([nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 3, padding=1)], 3),
        ([nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1)], 1),
        ([nn.Upsample(scale_factor=2)] + [nn.Conv2d(4, 4, 3, padding=1)] * 3, 2),
        ([nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1)], 1),
        ([nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 4, 3, padding=1)], 2),
    ],
)
def test_margins_are_those_derived_by_hand_and_enough(layers, margin):
    module = Stack(*layers)
    program = lower(module)
    assert program.margin_cells == margin
    x = torch.randn(1, 4, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(whole(program, x), module(x), atol=1e-6, rtol=0)


def test_a_strided_convolution_multiplies_the_margin():
    down = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    batch = torch.export.Dim("batch", min=2, max=63)
    rows, columns = (torch.export.Dim(n, min=4, max=4096) for n in ("rows", "columns"))
    exported = torch.export.export(
        Stack(down).eval(), (torch.zeros(2, 4, 24, 40),),
        dynamic_shapes=({0: batch, 2: 2 * rows, 3: 2 * columns},), strict=False,
    )  # fmt: skip
    program = Lowering(exported, "encoder", RULES).run()
    assert (program.input_scale, program.output_scale) == (2, 1)
    assert program.margins()[program.input] == (4, 4)  # 1 * 2 + 1 pixels before, rounded up to whole cells


@pytest.mark.parametrize(
    ("make_module", "channels", "margin"),
    [
        (lambda: diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=2, norm_num_groups=4), 4, 18),
        (lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4), 4, 19),
    ],
)  # fmt: skip
def test_the_margins_of_real_depths(make_module, channels, margin):
    assert localise(make_module().eval(), "decoder").margin_cells == margin


class Flips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.mirror = Mirror()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mirror(self.inner(x))


class Mirror(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flip(x, [3])


def test_an_unknown_operation_is_named_with_its_node_and_module():
    with pytest.raises(UnsupportedGraph, match=r"no rule for aten\.flip\.default \(node flip, module mirror\)"):
        lower(Flips())


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads with mode 'reflect'"),
        (nn.Conv2d(4, 4, (3, 5), padding=(1, 2)), "not square"),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "dilated"),
        (nn.Conv2d(4, 4, 3), "no multiple of the picture's"),
        (nn.AdaptiveAvgPool2d(1), "no rule for|averages over positions"),
        (nn.Softmax(dim=-1), "no rule for aten.softmax"),
    ],
)
def test_what_would_be_approximated_is_refused(layer, what):
    with pytest.raises(UnsupportedGraph, match=what):
        lower(Stack(layer))


def test_a_class_without_a_recipe_is_refused_by_name():
    with pytest.raises(BadCheckpoint, match="found an autoencoder of class Conv2d"):
        Coder(nn.Conv2d(1, 1, 1))


def test_four_phases_equal_upsampling_then_convolving():
    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    truth = nn.functional.conv2d(
        nn.functional.interpolate(x, scale_factor=2, mode="nearest"), torch.from_numpy(weight).double()
    )
    folded = nn.functional.pixel_shuffle(nn.functional.conv2d(x, torch.from_numpy(phases(weight)).double()), 2)
    torch.testing.assert_close(folded, truth, atol=1e-6, rtol=0)


@pytest.mark.parametrize("step", [collapse_shapes, merge_linear, fold_upsampling])
@pytest.mark.parametrize("name", ["AutoencoderDC", "AutoencoderTiny"])
def test_each_rewrite_leaves_the_result_alone(step, name, monkeypatch):
    vae = make(name)
    monkeypatch.setattr("widefield_export.families.rewrite", lambda program: program.pruned())
    plain = localise(vae, "decoder")
    rewritten = step(plain)
    channels = plain.input_layout[1].size
    x = torch.randn(1, channels, 9, 11)
    states = {
        f"{op.out}.state": torch.randn([1, *[a.size for a in op.layout if a.role == "plain"]]).abs()
        for op in plain.ops if op.kind == "cell_sum"
    }  # fmt: skip
    torch.testing.assert_close(whole(rewritten, x, states), whole(plain, x, states), atol=2e-5, rtol=1e-4)


def test_folding_and_merging_pay():
    vae = make("AutoencoderKL")
    program = localise(vae, "decoder")
    kinds = [op.kind for op in program.ops]
    assert kinds.count("upsample_conv") == 2 and "upsample" not in kinds
    assert kinds.count("linear") == 2, "query, and value merged with the output projection"
    assert sum(kind in ("reshape", "transpose") for kind in kinds) <= 4


def test_flops_count_what_pytorch_counts(monkeypatch):
    """Against torch's own counter on the untiled decoder, where nothing is rewritten."""
    from torch.utils.flop_counter import FlopCounterMode

    vae = make("AutoencoderTiny")
    monkeypatch.setattr("widefield_export.families.rewrite", lambda program: program.pruned())
    program = localise(vae, "decoder")
    (segment,) = cut(program, [])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Decoder(vae)(torch.randn(1, 4, 10, 14))
    assert flops(program, segment.ops, dict.fromkeys(program.margins(), (0, 0))).at(10, 14) == counter.get_total_flops()


def test_segments_hand_on_exactly_what_later_ones_read():
    program = localise(make("AutoencoderKL"), "decoder")
    segments = cut(program, program.sites())
    held = {program.input}
    queries = {program.op(s.op).args[0] for s in program.sites() if s.kind == "attention"}
    for index, segment in enumerate(segments):
        results = {s.op for s in program.sites() if s.kind == "attention"}
        assert set(segment.inputs) <= held | results
        held |= set(segment.outputs)
        for name in segment.outputs:
            later = {v for s in segments[index + 1 :] for v in s.inputs} | queries | {program.output}
            assert name in later
    assert isinstance(segments[-1], Segment) and program.output in segments[-1].outputs
