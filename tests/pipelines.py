"""Small whole checkpoints of the real pipeline classes, with tokenizers, as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from families import make
from models import DENOISERS, roughened

START, END, LETTERS = "<|startoftext|>", "<|endoftext|>", "abcdefghijklmnopqrstuvwxyz,.'"
MERGES = (("a", "t</w>"), ("h", "e</w>"), ("t", "he</w>"), ("s", "e"), ("se", "a</w>"))
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip_tokenizer(length: int, pad: str = END) -> Any:
    """CLIP's tokenizer on letters and six merges."""
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), *(a + b for a, b in MERGES), START, END]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=list(MERGES), pad_token=pad, model_max_length=length)


def word_tokenizer(length: int, *, start: bool) -> Any:
    """Whole words after a start token (as Gemma's) or before an end token (as T5's)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    text = "a an harbour sea town at dawn dusk the in of with boats user prompt : -"
    words = ["<pad>", "</s>", "<s>", "<unk>", *text.split()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<s> $A" if start else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 2), ("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip


def clip(width: int, tokenizer: Any, projection: int | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return roughened(kind(config))


def t5(width: int, tokenizer: Any) -> Any:
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return roughened(transformers.T5EncoderModel(config))


def gemma(width: int, tokenizer: Any) -> Any:
    torch.manual_seed(6)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
    )  # fmt: skip
    return roughened(transformers.Gemma2Model(config))


def _denoiser(name: str, **changes: Any) -> Any:
    kind, config = DENOISERS[name]
    torch.manual_seed(len(name))
    return roughened(getattr(diffusers, kind)(**(config | changes)))


def make_pipeline(name: str, channels: int = 4) -> Any:
    """SD1.5, SDXL, SD3, FLUX.1-dev or SANA, of a few thousand weights; SD1.5 also of other latent channels than 4."""
    kl = make("AutoencoderKL", latent_channels=channels)
    match name:
        case "SD1.5":
            tokens = clip_tokenizer(11)
            denoiser = _denoiser(name, in_channels=channels, out_channels=channels)
            return diffusers.StableDiffusionPipeline(
                kl, clip(12, tokens), tokens, denoiser, diffusers.PNDMScheduler(**SD, steps_offset=1), None, None,
                requires_safety_checker=False,
            )  # fmt: skip
        case "SDXL":
            first, second = clip_tokenizer(11), clip_tokenizer(11, pad="a")
            return diffusers.StableDiffusionXLPipeline(
                kl, clip(8, first), clip(12, second, 12, seed=1), first, second, _denoiser(name),
                diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="trailing"),
            )  # fmt: skip
        case "SD3":
            first, second, third = clip_tokenizer(11), clip_tokenizer(11, pad="a"), word_tokenizer(77, start=False)
            return diffusers.StableDiffusion3Pipeline(
                _denoiser(name), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), kl, clip(8, first, 10),
                first, clip(8, second, 14, seed=1), second, t5(20, third), third,
            )  # fmt: skip
        case "FLUX.1-dev":
            first, second = clip_tokenizer(11), word_tokenizer(77, start=False)
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
            return diffusers.FluxPipeline(
                scheduler, kl, clip(12, first), first, t5(20, second), second, _denoiser(name)
            )
        case "SANA":
            tokens = word_tokenizer(77, start=True)
            return diffusers.SanaPipeline(
                tokens, gemma(20, tokens), make("AutoencoderDC"), _denoiser(name, in_channels=8, out_channels=8),
                diffusers.DPMSolverMultistepScheduler(
                    use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
                ),
            )  # fmt: skip
    raise AssertionError(name)


def save_pipeline(name: str, folder: Path, channels: int = 4) -> Any:
    """The pipeline, saved as diffusers saves it."""
    pipeline = make_pipeline(name, channels)
    pipeline.save_pretrained(folder)
    return pipeline
