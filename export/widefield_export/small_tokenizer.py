"""The small pipeline's tokenizer: CLIP's byte-level BPE, with merges learnt from captions of worlds.

Any text can be tokenised, as every byte has a token; words of captions are one token each, or nearly.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from widefield.errors import BadRequest
from widefield_export.worlds.captions import caption
from widefield_export.worlds.draw import SCALES_M, draw_scene

MAX_TOKENS = 40
VOCABULARY = 1024
START, END = "<|startoftext|>", "<|endoftext|>"


def sample_captions(seed: int, count: int) -> list[str]:
    """Captions of worlds that nobody rendered: any shares of sea, river and cloud."""
    rng = np.random.default_rng([seed, count])
    shares = [
        {"sea": sea, "river": river, "cloud": cloud}
        for sea in (0.0, 0.5, 1.0)
        for river in (0.0, 0.2)
        for cloud in (0.0, 0.2, 0.6)
    ]
    return [
        caption(rng, draw_scene(rng), shares[int(rng.integers(len(shares)))], float(rng.choice(SCALES_M)))
        for _ in range(count)
    ]


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes as: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges in order of worth: the most frequent neighbours become one symbol, ties by spelling."""
    spelt = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelt.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = {word: _merged(symbols, best) for word, symbols in spelt.items()}
    return merges


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def build_tokenizer(captions: Iterable[str]) -> Any:
    """A CLIPTokenizer whose merges were learnt from these captions (plain letters, spaces and commas)."""
    from transformers import CLIPTokenizer

    words = Counter(word for text in captions for word in re.findall(r"[a-z]+|,", text.lower()))
    letters = byte_letters()
    symbols = letters + [letter + "</w>" for letter in letters]
    merges = learn_merges(words, VOCABULARY - len(symbols) - 2)
    vocabulary = {token: k for k, token in enumerate([*symbols, *("".join(m) for m in merges), START, END])}
    pairs: Any = merges
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=MAX_TOKENS)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that a pipeline was saved with."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").exists():
        raise BadRequest(f"no tokenizer in {folder}; wanted tokenizer.json; train without --resume first")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def vocabulary_files(tokenizer: Any) -> dict[str, str]:
    """vocab.json and merges.txt, as older readers of CLIP tokenizers want them beside tokenizer.json."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }
