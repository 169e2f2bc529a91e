"""Prompts as CrossFlow's text encoder reads them: CLIP's or T5's last states, and which of them are tokens."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atelier.convert.language_model import CONFIG, described
from atelier.data.t5_captions import clean_caption
from atelier.errors import ConfigError

MAX_TOKENS = 77
T5_SCALE = 10.0
"""What T5's states are multiplied by: they are smaller than CLIP's."""

T5_TYPE = torch.bfloat16
"""What T5 computes in, when features are made and when pictures are drawn: upstream's prompts come so too."""

_log = logging.getLogger(__name__)


class Prompts(NamedTuple):
    """Encoded prompts: states float32 [B, T, d]; mask [B, T], 1 where there is a token; tokens cut off each."""

    states: Tensor
    mask: Tensor
    cut: tuple[int, ...]


def open_language_model(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and text encoder, CLIP or T5, of a diffusers folder.

    Raises:
        DataError: it has none.
    """
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    model: Any = T5EncoderModel if described(folder / CONFIG)[0] == "t5" else CLIPTextModel
    encoder = as_trained(model.from_pretrained(folder / "text_encoder"))
    encoder.eval().requires_grad_(False)
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), encoder


def as_trained(encoder: Any) -> Any:
    """The language model in the precision in which its features are made; CLIP and None as they are."""
    return encoder.to(T5_TYPE) if encoder is not None and encoder.config.model_type == "t5" else encoder


@torch.no_grad()
def encode(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], tokens: int = MAX_TOKENS, warn: bool = True
) -> Prompts:
    """Encodes prompts, padded and cut to ``tokens``.

    CLIP sees its own padding (it was trained so), T5 does not; T5's captions are cleaned first. A prompt longer than
    that is cut; an empty one, or one of which cleaning leaves nothing, is a begin and an end. The log says both.

    Args:
        warn: say it; of a data set's captions it is counted instead.

    Raises:
        ConfigError: a prompt is no text.
    """
    wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is no prompt", "give texts")
    t5 = encoder.config.model_type == "t5"
    texts = [clean_caption(prompt) for prompt in prompts] if t5 else list(prompts)
    given = tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
    # Not verbose: a long prompt's own warning speaks of indexing errors, and is cut here.
    whole = tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
    cut = tuple(max(0, len(ids) - tokens) for ids in whole)
    for prompt, text, lost in zip(prompts, texts, cut, strict=True):
        if warn and not text.strip():
            left = f" when it is cleaned for T5 ({prompt:.60})" if prompt.strip() else ""
            _log.warning("this prompt is empty%s, and says nothing of the picture", left)
        if lost and warn:
            _log.warning("the last %d tokens of this prompt are not seen: %.60s …", lost, prompt)
    ids, mask = given.input_ids.to(encoder.device), given.attention_mask.to(encoder.device)
    states = encoder(ids, attention_mask=mask if t5 else None).last_hidden_state.float()
    return Prompts(states * T5_SCALE if t5 else states, mask.float(), cut)
