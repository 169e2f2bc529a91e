"""Raw examples to training samples by a recipe's encoder: decode, crop, select boxes, encode in batches."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.encoder import Encoder, EncoderSpec, TakesLatents
from atelier.data.geometry import decode_image
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import RawSource, open_source
from atelier.data.sa1b_latents import flaw
from atelier.data.settings import Settings
from atelier.data.work import Sample, WorkSpec
from atelier.errors import ConfigError, DataError
from atelier.storage.manifest import Manifest

Prepared = tuple[RawExample, np.ndarray]
"""An example with its pixels, or its ready-made latent."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """``data.work.Work`` of a source, an encoder and settings.

    Raises:
        ConfigError: the source brings latents and the encoder wants images.
    """

    source: RawSource
    encoder: Encoder
    settings: Settings

    def __post_init__(self) -> None:
        if self.source.brings_latents and not isinstance(self.encoder, TakesLatents):
            raise ConfigError(
                f"{self.source.manifest.uri} holds ready-made latents, which this recipe's encoder does not take",
                "give it images",
            )

    @property
    def digest(self) -> str:
        return self.encoder.digest

    @property
    def samples_per_shard(self) -> int:
        return self.settings.samples_per_shard

    @property
    def batch(self) -> int:
        return self.settings.batch

    def prepare(self, example: RawExample) -> Prepared:
        """The example with its chosen boxes, and its pixels, uint8 [res, res, 3], or its latent."""
        if example.latent is None:
            array = decode_image(example.image, self.settings.res)
        else:
            array = example.latent
            if problem := flaw(array, self._takes_latents.latent_shape(self.settings.res)):
                raise ValueError(problem)
        # The image's file has served: a batch that waits holds its pixels alone.
        return replace(self.source.select(example, self.settings), image=b"", latent=None), array

    @property
    def _takes_latents(self) -> TakesLatents:
        assert isinstance(self.encoder, TakesLatents)
        return self.encoder

    def finish(self, prepared: list[Prepared]) -> list[Sample]:
        """See ``Work``.

        Raises:
            DataError: the encoder returns another number of samples.
        """
        examples = [example for example, _ in prepared]
        encode = self._takes_latents.encode_latents if self.source.brings_latents else self.encoder.encode
        arrays = encode(np.stack([array for _, array in prepared]), examples)
        if len(arrays) != len(examples):
            raise DataError(
                f"the encoder returned {len(arrays)} samples for {len(examples)} images",
                "this is an error of the recipe's encoder",
            )
        return [self._sample(example, own) for example, own in zip(examples, arrays, strict=True)]

    def _sample(self, example: RawExample, arrays: dict[str, np.ndarray]) -> Sample:
        counts = {"kept": len(example.boxes), "clipped": example.clipped, "dropped": example.dropped}
        return Sample(example.key, arrays, self.source.record(example, self.settings.res), counts)


def encoding_spec(source: RawSource, encoder: EncoderSpec, settings: Settings) -> WorkSpec:
    """How another process makes this ``Encoding``."""
    return WorkSpec(
        f"{__name__}:open_encoding",
        {
            "source": source.manifest.to_json(),
            "cache": str(source.cache) if source.cache else None,
            "encoder": asdict(encoder),
            "settings": asdict(settings),
        },
    )


def open_encoding(source: str, cache: str | None, encoder: dict[str, Any], settings: dict[str, Any]) -> Encoding:
    """From ``encoding_spec``'s arguments."""
    raw = open_source(Manifest.parse(source), Path(cache) if cache else None)
    return Encoding(raw, EncoderSpec(**encoder).make(), Settings(**settings))
