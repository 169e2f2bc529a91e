"""A T5 encoder in miniature with its tokenizer: what a base of T5 has in the place of CLIP's.

Random and untaught. T5 knows places only by their distance, so a token's states are mostly its own embedding, and what
reads them (CrossFlow's text encoder) reads each place by itself: the words are there as they are.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from atelier.data import digits

WORDS = ("a", "an", "and", "above", *digits.WORDS)
TOKENS, LAYERS, HEADS = 16, 2, 4
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()"
STATES = 0.1
"""The scale of the last norm, about that of the published T5's states, which CrossFlow multiplies by ten."""


def make_tokenizer(words: Sequence[str] = WORDS, max_length: int = TOKENS) -> T5Tokenizer:
    """A T5 tokenizer (SentencePiece's unigrams) in which each of ``words`` is one token, anything else letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -1.0) for word in sorted(set(words))]
    pieces += [("▁", -10.0), *((letter, -10.0) for letter in _LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


def make_encoder(vocabulary: int, width: int, seed: int) -> T5EncoderModel:
    """A fresh encoder of T5 v1.1's kind (gated GELU), its states about ``STATES`` in size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=width // HEADS,
            d_ff=2 * width,
            num_layers=LAYERS,
            num_heads=HEADS,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        encoder = T5EncoderModel(config).eval().requires_grad_(False)
    encoder.encoder.final_layer_norm.weight.fill_(STATES)
    return encoder


def write(folder: Path, width: int, seed: int = 0) -> None:
    """``text_encoder`` and ``tokenizer`` of the twin; the same arguments give the same numbers."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    make_encoder(len(tokenizer), width, seed).to(torch.bfloat16).save_pretrained(folder / "text_encoder")
