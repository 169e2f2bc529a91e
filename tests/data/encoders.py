"""Encoders for the tests: quick, no model, and of a kind that shows what went wrong."""

import os
import signal
import time

import numpy as np

from atelier.data.raw_example import RawExample


class PixelEncoder:
    """Downscaled pixels as latents: quick, and every sample can be told from every other."""

    digest = "sha256:pixels"

    def __init__(self, fail_after: int | None = None) -> None:
        self.encoded, self.fail_after = 0, fail_after

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        if self.fail_after is not None and self.encoded >= self.fail_after:
            raise KeyboardInterrupt
        self.encoded += len(images)
        return [
            {
                "latent": image[::4, ::4].transpose(2, 0, 1).astype(np.float16),
                "phrases": np.full((len(example.phrases), 8), len(example.caption), np.float16),
            }
            for image, example in zip(images, examples, strict=True)
        ]


class BlendingEncoder:
    """Mixes each image with its whole batch, so that a batch of another composition gives other bytes.

    Args:
        delay_s: seconds a batch.
        kill_at: key at which the process is killed (SIGKILL), as the kernel does when memory runs out.
        fail_at: key at which it raises.
        damage: key → what is wrong with its arrays: "nan", "inf", "dtype", "shape", "rank", "missing" or "object".
    """

    digest = "sha256:blending"

    def __init__(
        self, delay_s: float = 0.0, kill_at: str = "", fail_at: str = "", damage: dict[str, str] | None = None
    ) -> None:
        self.delay_s, self.kill_at, self.fail_at, self.damage = delay_s, kill_at, fail_at, damage or {}

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        keys = [example.key for example in examples]
        if self.kill_at in keys:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail_at in keys:
            raise ZeroDivisionError("the encoder's own error")
        time.sleep(self.delay_s)
        mean = images.mean(axis=0, dtype=np.float32)
        return [self._arrays(key, image, mean) for key, image in zip(keys, images, strict=True)]

    def _arrays(self, key: str, image: np.ndarray, mean: np.ndarray) -> dict[str, np.ndarray]:
        latent = ((image + mean) / 2)[::4, ::4].transpose(2, 0, 1).astype(np.float16)
        arrays = {"latent": latent, "pooled": latent.mean(axis=(1, 2))}
        match self.damage.get(key):
            case "nan":
                arrays["latent"][1, 2, 3] = np.nan
            case "inf":
                arrays["pooled"][0] = np.inf
            case "dtype":
                arrays["latent"] = arrays["latent"].astype(np.float32)
            case "shape":
                arrays["latent"] = arrays["latent"][:, :8]
            case "rank":
                arrays["pooled"] = arrays["pooled"][None]
            case "missing":
                del arrays["pooled"]
            case "object":
                arrays["pooled"] = arrays["pooled"].astype(object)
        return arrays
