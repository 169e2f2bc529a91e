"""Raw examples to training samples by a recipe's encoder: decode, crop, select boxes, encode in batches."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.encoder import Encoded, Encoder, EncoderSpec, TakesLatents, TakesSquares
from atelier.data.filters import reason
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import RawSource, open_source
from atelier.data.sa1b_latents import flaw
from atelier.data.settings import Settings
from atelier.data.squares import decode_squares
from atelier.data.work import Sample, WorkSpec
from atelier.errors import ConfigError, DataError
from atelier.storage.manifest import Manifest

Prepared = tuple[RawExample, dict[int, np.ndarray]]
"""An example with its squares' pixels, or its ready-made latent, by resolution."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """``data.work.Work`` of a source, an encoder and settings.

    Raises:
        ConfigError: the source brings latents and the encoder wants images, or several squares are wanted of an encoder
            of one.
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
        if self.settings.also and not isinstance(self.encoder, TakesSquares):
            raise ConfigError(
                f"resolutions {', '.join(map(str, self.settings.resolutions))}: this recipe's encoder makes one",
                "give one resolution",
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

    def unwanted(self, example: RawExample) -> str:
        """What the filters say."""
        filters = self.settings.filters
        return "" if filters is None else reason(example, filters, self.settings.resolutions[-1])

    def prepare(self, example: RawExample) -> Prepared:
        """The example with its chosen boxes, and its pixels, uint8 [res, res, 3], or its latent."""
        if example.latent is None:
            arrays = decode_squares(example.image, self.settings.resolutions, self.settings.crop, example.inner)
        else:
            if problem := flaw(example.latent, self._takes_latents.latent_shape(self.settings.res)):
                raise ValueError(problem)
            arrays = {self.settings.res: example.latent}
        # The image's file has served: a batch that waits holds its pixels alone.
        return replace(self.source.select(example, self.settings), image=b"", latent=None), arrays

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
        encoded = self._encoded(
            {res: np.stack([arrays[res] for _, arrays in prepared]) for res in prepared[0][1]}, examples
        )
        if len(encoded) != len(examples):
            raise DataError(
                f"the encoder returned {len(encoded)} samples for {len(examples)} images",
                "this is an error of the recipe's encoder",
            )
        return [self._sample(example, own) for example, own in zip(examples, encoded, strict=True)]

    def _encoded(self, arrays: dict[int, np.ndarray], examples: list[RawExample]) -> list[Encoded]:
        if self.source.brings_latents:
            return [Encoded(each) for each in self._takes_latents.encode_latents(arrays[self.settings.res], examples)]
        if isinstance(self.encoder, TakesSquares):
            return self.encoder.encode_squares(arrays, examples)
        return [Encoded(each) for each in self.encoder.encode(arrays[self.settings.res], examples)]

    def _sample(self, example: RawExample, encoded: Encoded) -> Sample:
        boxes = {"kept": len(example.boxes), "clipped": example.clipped, "dropped": example.dropped}
        record = self.source.record(example, self.settings.res)
        return Sample(example.key, encoded.arrays, record, boxes, {**example.counts, **encoded.counts})


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
    return Encoding(raw, EncoderSpec(**encoder).make(), Settings.of(settings))
