"""What CrossFlow's features take on disk: our shards beside the pickle a picture that its published code writes."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Bench, Result

COUNT = 192
T5_WIDTH, CLIP_WIDTH, TOKENS = 4096, 768, 77
UPSTREAM_COUNT = 8


class Lengths(NamedTuple):
    """Tokens of a data set's captions: log-normal, at least 3, cut at 77."""

    median: float
    spread: float


WEB = Lengths(17, 0.5)
"""Alt texts as LAION's: a mean of 19 tokens."""

PROMPTS = Lengths(40, 0.6)
"""Midjourney's prompts as JourneyDB's: a mean of 43 tokens, and one in seven cut. An assumption, as the other is."""


def crossflow_feature_bytes() -> Result:
    """MB a picture of both resolutions' moments and T5-XXL's states, index and json included; captions as ``WEB``."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        both = _ours(place / "t5", (256, 512), T5_WIDTH, WEB)
        sizes = {
            "T5, 256 px": _ours(place / "t5_256", (256,), T5_WIDTH, WEB),
            "T5, both, longer prompts": _ours(place / "t5_long", (256, 512), T5_WIDTH, PROMPTS),
            "CLIP, both": _ours(place / "clip", (256, 512), CLIP_WIDTH, WEB),
            "CLIP, 256 px": _ours(place / "clip_256", (256,), CLIP_WIDTH, WEB),
            "upstream's, both resolutions and both language models": _upstream(place / "pickles", ("clip", "t5")),
            "upstream's without CLIP": _upstream(place / "pickles_t5", ("t5",)),
        }
    said = "; ".join(f"{name} {size:.3f}" for name, size in sizes.items())
    return Result("crossflow_feature_bytes", round(both, 4), "MB", bar=0.35, better="lower", note=said)


def _lengths(count: int, of: Lengths) -> list[int]:
    import numpy as np

    drawn = np.random.default_rng(0).lognormal(np.log(of.median), of.spread, count)
    lengths: list[int] = np.clip(np.round(drawn), 3, TOKENS).astype(int).tolist()
    return lengths


def _ours(place: Path, resolutions: tuple[int, ...], width: int, of: Lengths) -> float:
    """MB a picture of everything that a shard of features leaves."""
    import numpy as np
    import torch

    from atelier.data import bfloat16
    from atelier.data.shards import ShardWriter
    from atelier.storage.folder import OutputFolder

    generator = torch.Generator().manual_seed(0)
    out = OutputFolder(str(place), place.with_name(place.name + "-work"))
    writer = ShardWriter(out, "00000-0000.tar")
    for number, tokens in enumerate(_lengths(COUNT, of)):
        moments = {f"moments_{res}": torch.randn(8, res // 8, res // 8, generator=generator) for res in resolutions}
        arrays = {name: bfloat16.array(tensor) for name, tensor in moments.items()}
        arrays["text"] = bfloat16.array(torch.randn(tokens, width, generator=generator))
        arrays["tokens"] = np.array(tokens, np.int32)
        writer.add(f"{number:09d}", arrays, _record(number, tokens))
    writer.close({})
    manifest = out.finish("shards", {}, {})
    return sum(entry.bytes for entry in manifest.files) / COUNT / 1e6


def _record(number: int, tokens: int) -> dict[str, Any]:
    """A json as preprocessing leaves it: four letters a token."""
    facts = {"url": f"https://images.example.org/photographs/{number:09d}.jpg", "LICENSE": "?", "NSFW": "UNLIKELY"}
    size = {"original_size": [683, 1024], "similarity": 0.3312}
    return {"key": f"{number:09d}", "caption": "abc " * tokens, **size, **facts}


def _upstream(place: Path, models: tuple[str, ...]) -> float:
    """MB a picture of a pickled dict each: fp32, the padding too."""
    import numpy as np

    place.mkdir()
    rng = np.random.default_rng(0)
    widths = {"clip": CLIP_WIDTH, "t5": T5_WIDTH}
    for number in range(UPSTREAM_COUNT):
        sample: dict[str, Any] = {
            f"image_latent_{res}": rng.standard_normal((8, res // 8, res // 8), np.float32) for res in (256, 512)
        }
        for model in models:
            sample[f"token_embedding_{model}"] = rng.standard_normal((TOKENS, widths[model]), np.float32)
            sample[f"token_mask_{model}"] = np.ones(TOKENS, np.int64)
            sample[f"token_{model}"] = rng.integers(0, 30_000, TOKENS)
        np.save(place / f"{number}.npy", np.array(sample | {"batch_caption": "abc " * 20}), allow_pickle=True)
    return sum(path.stat().st_size for path in place.iterdir()) / UPSTREAM_COUNT / 1e6


BENCHES: dict[str, Bench] = {"crossflow_feature_bytes": crossflow_feature_bytes}
