"""A prompt to what a denoiser is given. Tokenised by `tokenizers`, run by an engine.

    block   hidden states of its encoders side by side in width       text    blocks after each other, (tokens, width)
    pooled  pooled states of its encoders side by side                mask    1 for a token, 0 for padding

Encoders are opened one after the other and closed again: the largest of them has more weights than the denoiser. What
does not fit into an encoder is cut from the prompt's end, and said: in `Conditioning.cut`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from widefield.engine import EngineOptions, open_engine
from widefield.errors import BadBundle, BadRequest, MissingBackend

if TYPE_CHECKING:
    from widefield.bundle import Bundle
    from widefield.parts import EncoderPart, TextPart

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """text (tokens, width); pooled (width,) and mask (tokens,) where the denoiser takes them.

    `cut` is what was left out: by encoder, the text that did not fit.
    """

    text: Array
    pooled: Array | None
    mask: Array | None
    cut: Mapping[str, str]

    def told(self) -> str | None:
        """One line about what was cut; None where nothing was."""
        if not self.cut:
            return None
        parts = "; ".join(f"{name} left out {text!r}" for name, text in self.cut.items())
        return f"the prompt is longer than the model reads: {parts}"


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """What one encoder reads of one prompt; `keep` are the positions that the denoiser gets."""

    ids: Array
    mask: Array
    keep: Sequence[int]
    cut: str


def embed(
    bundle: Bundle, prompt: str, negative: str | None = None, options: EngineOptions | None = None
) -> tuple[Conditioning, Conditioning]:
    """(for the prompt, for the negative one). Without a negative prompt: zeros or the empty prompt, as trained.

    BadRequest for a bundle without text encoders, MissingBackend where tokenizers is not installed.
    """
    part = bundle.parts.text
    if part is None:
        raise BadRequest(
            f"{bundle.name} has no text encoders; wanted a bundle with them; export with --text FOLDER, a checkpoint's "
            "folder that has its text encoders and tokenizers"
        )
    states: list[dict[str, tuple[Array | None, Array | None]]] = [{}, {}]
    tokens: list[dict[str, _Tokens]] = [{}, {}]
    for encoder in part.encoders:
        tokenizer = _tokenizer(bundle, encoder)
        for at, text in enumerate((encoder.prefix + _plain(encoder, prompt), _plain(encoder, negative or ""))):
            tokens[at][encoder.name] = _tokens(tokenizer, encoder, text, prefixed=at == 0 and encoder.prefix != "")
        for at, found in enumerate(_run(bundle, encoder, [t[encoder.name] for t in tokens], options)):
            states[at][encoder.name] = found
    positive, other = (_joined(part, s, t) for s, t in zip(states, tokens, strict=True))
    if negative is None and part.zeros:
        pooled = None if other.pooled is None else np.zeros_like(other.pooled)
        other = replace(other, text=np.zeros_like(other.text), pooled=pooled)
    return positive, other


def _plain(encoder: EncoderPart, text: str) -> str:
    return text.lower().strip() if encoder.lower else text


def _tokenizer(bundle: Bundle, encoder: EncoderPart) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as cause:
        raise MissingBackend("prompts need tokenizers; pip install tokenizers") from cause
    path = bundle.file(encoder.tokenizer)
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as cause:  # the library raises Exception itself
        if type(cause) is not Exception:
            raise
        raise BadBundle(f"{path} is no tokenizer ({cause}); the bundle is damaged; export it again") from cause


def _tokens(tokenizer: Any, encoder: EncoderPart, text: str, *, prefixed: bool) -> _Tokens:
    """Truncated and padded to the encoder's length. A prefix is read with the prompt, and mostly not kept."""
    room = encoder.length if prefixed else encoder.keep
    tokenizer.no_padding()
    tokenizer.no_truncation()
    places = tokenizer.encode(text, add_special_tokens=False).offsets
    tokenizer.enable_truncation(room)
    ids = tokenizer.encode(text).ids
    left_out = places[room - tokenizer.num_special_tokens_to_add(False) :]
    cut = text[left_out[0][0] :].strip() if left_out else ""
    mask = np.zeros((1, encoder.length), np.float32)
    mask[0, : len(ids)] = 1
    padded = np.full((1, encoder.length), encoder.pad, np.float32)
    padded[0, : len(ids)] = ids
    first = encoder.length - encoder.keep + 1
    keep = [0, *range(first, encoder.length)] if prefixed else range(encoder.keep)
    return _Tokens(padded, mask, keep, cut)


def _run(
    bundle: Bundle, encoder: EncoderPart, prompts: Sequence[_Tokens], options: EngineOptions | None
) -> list[tuple[Array | None, Array | None]]:
    """(hidden (keep, width), pooled (width,)) of every prompt, None for what the encoder has not."""
    shape = (1, encoder.length)
    shapes = {"tokens": shape, "mask": shape} if encoder.mask else {"tokens": shape}
    engine = open_engine(bundle.file(encoder.file), shapes, {}, options or EngineOptions())
    try:
        found = []
        for prompt in prompts:
            into = {}
            if encoder.hidden:
                into["hidden"] = np.empty((*shape, encoder.hidden), np.float32)
            if encoder.pooled:
                into["pooled"] = np.empty((1, encoder.pooled), np.float32)
            feeds = {"tokens": prompt.ids, "mask": prompt.mask}
            engine.run({name: feeds[name] for name in shapes}, into)
            hidden = into["hidden"][0, list(prompt.keep)] if encoder.hidden else None
            found.append((hidden, into["pooled"][0] if encoder.pooled else None))
        return found
    finally:
        engine.close()


def _joined(
    part: TextPart, states: Mapping[str, tuple[Array | None, Array | None]], tokens: Mapping[str, _Tokens]
) -> Conditioning:
    text = np.zeros((sum(block.tokens for block in part.blocks), part.width), np.float32)
    row = 0
    for block in part.blocks:
        column = 0
        for name in block.encoders:
            hidden = states[name][0]
            assert hidden is not None and hidden.shape[0] == block.tokens
            text[row : row + block.tokens, column : column + hidden.shape[1]] = hidden
            column += hidden.shape[1]
        row += block.tokens
    pooled = [pool for name in part.pooled if (pool := states[name][1]) is not None]
    masked = next((e for e in part.encoders if e.mask), None)
    mask = None if masked is None else tokens[masked.name].mask[0, list(tokens[masked.name].keep)]
    cut = {name: t.cut for name, t in tokens.items() if t.cut}
    return Conditioning(text, np.concatenate(pooled) if pooled else None, mask, cut)
