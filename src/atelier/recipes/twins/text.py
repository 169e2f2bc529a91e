"""The twins' CLIP text encoders and their tokenizer, made from the captions' own words.

SDXL reads a prompt through two encoders: the next-to-last hidden states of both, side by side, and the projected
end-of-text state of the second ("pooled"); SD 1.x through one. A twin has as many at 2 layers, taught for a few
seconds to tell from the end-of-text state which digits a caption names, then frozen. A random, untaught encoder also
carries the words, but so weakly beside the position embedding that a tiny UNet never finds them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from atelier.errors import ConfigError
from atelier.progress import Progress

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes, which byte-level BPE is written in."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def make_tokenizer(words: Sequence[str], max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer in which each of ``words`` is one token and anything else falls back to letters.

    Raises:
        ConfigError: two words' merges get in each other's way.
    """
    letters = byte_alphabet()
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in sorted(set(words)):
        parts = [*word[:-1], word[-1] + "</w>"]
        head = parts[0]
        for part in parts[1:]:
            if (head, part) not in merges:
                merges.append((head, part))
                tokens.append(head + part)
            head += part
    vocab = {token: index for index, token in enumerate([*dict.fromkeys(tokens), BEGIN, END])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
    broken = [word for word in words if len(tokenizer(word).input_ids) != 3]
    if broken:
        raise ConfigError(f"these words do not become one token each: {broken}", "leave one of them out")
    return tokenizer


def make_encoders(
    tokenizer: CLIPTokenizer, width: int, seed: int, projected: Sequence[bool] = (False, True)
) -> tuple[TextEncoder, ...]:
    """Fresh encoders of 2 layers and ``width`` channels, SDXL's two by default.

    Token embeddings start at 25 times CLIP's usual scale: at 0.02 the LayerNorms see mostly position.

    Args:
        projected: of each, whether it projects its end-of-text state.
    """
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoders = tuple(CLIPTextModelWithProjection(config) if own else CLIPTextModel(config) for own in projected)
    with torch.no_grad():
        for model in encoders:
            model.get_input_embeddings().weight.mul_(25)
    return encoders


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids [B, max_length], padded and cut as SDXL's pipelines do."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def pooled(encoder: TextEncoder, ids: Tensor) -> Tensor:
    """The end-of-text state [B, W], projected where the encoder has a projection."""
    made = encoder(ids)
    state: Tensor = made.text_embeds if isinstance(encoder, CLIPTextModelWithProjection) else made.pooler_output
    return state


def teach(
    tokenizer: CLIPTokenizer,
    encoders: Sequence[TextEncoder],
    examples: Callable[[int], tuple[list[str], Tensor]],
    classes: int,
    steps: int = 500,
    batch: int = 64,
) -> float:
    """Teaches every end-of-text state which classes a caption names; then standardises them in place.

    Args:
        examples: batch size → (captions, multi-hot [B, classes]).

    Returns:
        the share of captions whose every class the first encoder's state tells rightly, at the end.
    """
    heads = nn.ModuleList([nn.Linear(encoder.config.hidden_size, classes) for encoder in encoders])
    parameters = [parameter for model in (*encoders, heads) for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    progress = Progress("text encoders", steps, "steps")
    right = 0.0
    for _ in range(steps):
        captions, target = examples(batch)
        ids = tokenize(tokenizer, captions)
        logits = [head(pooled(encoder, ids)) for head, encoder in zip(heads, encoders, strict=True)]
        loss = torch.stack([F.binary_cross_entropy_with_logits(x, target) for x in logits]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = float(((logits[0] > 0) == target.bool()).all(1).float().mean())
        progress.advance(loss=loss.item(), right=right)
    captions, _ = examples(2048)
    ids = tokenize(tokenizer, captions)
    for encoder in encoders:
        standardise(encoder, ids)
    return right


@torch.no_grad()
def standardise(encoder: TextEncoder, ids: Tensor) -> None:
    """Folds a per-channel standardisation of the end-of-text state into the last LayerNorm and the projection.

    The states of different captions share a large common part; centred, what remains is the words.
    """
    if isinstance(encoder, CLIPTextModelWithProjection):
        norm = encoder.text_model.final_layer_norm
        norm.bias.sub_(encoder.text_model(ids).pooler_output.mean(0))
        encoder.text_projection.weight.div_(encoder(ids).text_embeds.std(0).clamp_min(1e-3)[:, None])
        return
    norm = encoder.final_layer_norm
    state = encoder(ids).pooler_output
    mean, std = state.mean(0), state.std(0).clamp_min(1e-3)
    norm.bias.copy_((norm.bias - mean) / std)
    norm.weight.div_(std)


def save(folder: Path, tokenizer: CLIPTokenizer, *encoders: TextEncoder) -> None:
    """Writes tokenizer and text_encoder, tokenizer_2 and text_encoder_2, … as diffusers' folders have them."""
    for number, encoder in enumerate(encoders, start=1):
        suffix = f"_{number}" if number > 1 else ""
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        encoder.save_pretrained(folder / f"text_encoder{suffix}")
