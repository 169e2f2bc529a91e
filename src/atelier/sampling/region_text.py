"""Descriptions as regional attention reads them: every token's last state, of one text encoder or two side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.regional.reading import Reader
from atelier.models.regional.tokens import EncodedTexts
from atelier.sampling.layout_pipeline import TOKENIZING

SEPARATOR = ";</w>"
"""CLIP's token between a region's descriptions."""

AT_ONCE = 64
"""Texts that an encoder reads together: of bigG 64 states in fp32 are 25 MB, a batch's 2,000 would be 0.8 GB."""


def _float32(states: Tensor) -> np.ndarray:
    return states.float().cpu().numpy()


def region_reader(
    tokenizers: Sequence[Any], encoders: Sequence[Any], as_array: Callable[[Tensor], np.ndarray] = _float32
) -> Reader:
    """How these encoders read regions; the first tokenizer says where a description begins and ends.

    Args:
        tokenizers, encoders: SDXL's two, SD's one.
        as_array: states as an array, of the type that is wanted.

    Raises:
        ConfigError: a tokenizer or an encoder is missing.
    """
    if any(part is None for part in (*tokenizers, *encoders)):
        raise ConfigError("there is no text encoder for descriptions", "open the whole pipeline's folder")
    first = tokenizers[0]

    def encode(texts: Sequence[str]) -> EncodedTexts:
        return region_states(tokenizers, encoders, texts, as_array)

    def fits(text: str) -> bool:
        longest: int = first.model_max_length
        with TOKENIZING:  # one more than it may have is enough to know
            return len(first(text, truncation=True, max_length=longest + 1).input_ids) <= longest

    return Reader(encode, fits, first.convert_tokens_to_ids(SEPARATOR), first.eos_token_id)


@torch.no_grad()
def region_states(
    tokenizers: Sequence[Any],
    encoders: Sequence[Any],
    texts: Sequence[str],
    as_array: Callable[[Tensor], np.ndarray] = _float32,
) -> EncodedTexts:
    """Token ids of the first tokenizer int64 [N, T], and the encoders' last states side by side [N, T, D].

    After their final norm, and padding does not see padding: as the published training has it (facts, section 1.2), not
    as SDXL reads a prompt. However many texts there are, the encoders have ``AT_ONCE`` before them.

    Args:
        tokenizers, encoders, as_array: as of ``region_reader``.
    """
    ids: np.ndarray = np.zeros((0, 0), np.int64)
    states: np.ndarray = np.zeros((0, 0, 0), np.float32)
    for first in range(0, len(texts), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        read, made = _together(tokenizers, encoders, texts[rows])
        array = as_array(made)
        if not first:
            # All in their place at once: joined at the end they would be there twice.
            ids = np.empty((len(texts), *read.shape[1:]), read.dtype)
            states = np.empty((len(texts), *array.shape[1:]), array.dtype)
        ids[rows], states[rows] = read, array
    return EncodedTexts(ids, states)


def _together(tokenizers: Sequence[Any], encoders: Sequence[Any], texts: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    states: list[Tensor] = []
    ids: list[np.ndarray] = []
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        with TOKENIZING:
            read = tokenizer(
                list(texts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
        device = encoder.device
        made = encoder(read.input_ids.to(device), attention_mask=read.attention_mask.to(device))
        states.append(made.last_hidden_state)
        ids.append(read.input_ids.numpy())
    return ids[0], torch.cat([each.to(states[0]) for each in states], dim=-1)
