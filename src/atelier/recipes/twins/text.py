"""The twins' two CLIP text encoders and their tokenizer, made from the captions' own words.

SDXL reads a prompt through two encoders: the next-to-last hidden states of both, side by side, and the projected
end-of-text state of the second ("pooled"). A twin has the same two at 2 layers, taught for a few seconds to tell
from the end-of-text state which digits a caption names, then frozen. A random, untaught encoder also carries the
words, but so weakly beside the position embedding that a tiny UNet never finds them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from atelier.errors import ConfigError
from atelier.progress import Progress

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


def make_encoders(tokenizer: CLIPTokenizer, width: int, seed: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two fresh encoders of 2 layers and ``width`` channels; the second projects its end-of-text state.

    Token embeddings start at 25 times CLIP's usual scale: at 0.02 the LayerNorms see mostly position.
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
    first, second = CLIPTextModel(config), CLIPTextModelWithProjection(config)
    with torch.no_grad():
        for model in (first, second):
            model.get_input_embeddings().weight.mul_(25)
    return first, second


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids [B, max_length], padded and cut as SDXL's pipelines do."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def teach(
    tokenizer: CLIPTokenizer,
    first: CLIPTextModel,
    second: CLIPTextModelWithProjection,
    examples: Callable[[int], tuple[list[str], Tensor]],
    classes: int,
    steps: int = 500,
    batch: int = 64,
) -> float:
    """Teaches both end-of-text states which classes a caption names; then standardises them in place.

    Args:
        examples: batch size → (captions, multi-hot [B, classes]).

    Returns:
        the share of captions whose every class both states tell rightly, at the end.
    """
    heads = nn.ModuleList(
        [nn.Linear(first.config.hidden_size, classes), nn.Linear(second.config.projection_dim, classes)]
    )
    parameters = [*first.parameters(), *second.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    progress = Progress("text encoders", steps, "steps")
    right = 0.0
    for _ in range(steps):
        captions, target = examples(batch)
        ids = tokenize(tokenizer, captions)
        logits = [heads[0](first(ids).pooler_output), heads[1](second(ids).text_embeds)]
        loss = torch.stack([F.binary_cross_entropy_with_logits(x, target) for x in logits]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = float(((logits[0] > 0) == target.bool()).all(1).float().mean())
        progress.advance(loss=loss.item(), right=right)
    captions, _ = examples(2048)
    standardise(tokenizer, first, second, captions)
    return right


@torch.no_grad()
def standardise(
    tokenizer: CLIPTokenizer, first: CLIPTextModel, second: CLIPTextModelWithProjection, captions: Sequence[str]
) -> None:
    """Folds a per-channel standardisation of the end-of-text states into the last LayerNorm and the projection.

    The states of different captions share a large common part; centred, what remains is the words.
    """
    first_norm, second_norm = first.final_layer_norm, second.text_model.final_layer_norm
    ids = tokenize(tokenizer, captions)
    pooled = first(ids).pooler_output
    mean, std = pooled.mean(0), pooled.std(0).clamp_min(1e-3)
    first_norm.bias.copy_((first_norm.bias - mean) / std)
    first_norm.weight.div_(std)
    pooled = second.text_model(ids).pooler_output
    second_norm.bias.sub_(pooled.mean(0))
    embeds = second(ids).text_embeds
    second.text_projection.weight.div_(embeds.std(0).clamp_min(1e-3)[:, None])


def save(folder: Path, tokenizer: CLIPTokenizer, first: CLIPTextModel, second: CLIPTextModelWithProjection) -> None:
    """Writes tokenizer, tokenizer_2, text_encoder and text_encoder_2 as SDXL's folder has them."""
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / name)
    first.save_pretrained(folder / "text_encoder")
    second.save_pretrained(folder / "text_encoder_2")
