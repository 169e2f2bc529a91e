"""Raw data to training shards: decode, crop, select boxes, encode in batches, write; resumable shard by shard."""

from typing import Any

from atelier.data import summary
from atelier.data.encoder import Encoder, EncoderSpec
from atelier.data.encoding import Encoding, encoding_spec
from atelier.data.quarantine import Quarantine
from atelier.data.raw_source import RawSource, open_source
from atelier.data.settings import Settings
from atelier.data.summary import ShardSummary
from atelier.data.units import UnitShards, work_through
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder

__all__ = ["Encoder", "EncoderSpec", "RawSource", "Settings", "encode", "open_source", "preprocess"]


def preprocess(
    source: RawSource,
    encoder: EncoderSpec | Encoder,
    out: OutputFolder,
    settings: Settings,
    quarantine: Quarantine,
    total: int | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Writes ``<unit's stem>-<number>.tar`` shards, their indices and ``quarantine.jsonl`` into ``out``.

    A shard covers a fixed range of its unit's examples, so an interrupted run goes on after the last committed
    shard: what it covers is read past, neither decoded nor encoded; finished units are not even fetched. Same input,
    settings and encoder give the same bytes, whatever the number of workers and whenever it was interrupted.

    Args:
        encoder: its specification, or an encoder itself (then one worker).
        total: number of images, for the progress and for noticing early that too many are bad.
        workers: processes; 0 is one for each visible GPU, one without any.

    Returns:
        The manifest's metadata: samples, quarantined and filtered (count by reason), resolution (and resolutions, where
        there are several), encoder (digest), fields (name → [dtype, shape], null where a dimension varies), boxes
        (counts), counts (of the encoder, where it has any), shards (name, samples).

    Raises:
        DataError: more samples are bad than ``quarantine`` allows, or the filters left none. AtelierError: a worker
            died or failed.
    """
    units, digest = encode(source, source.units, encoder, out, settings, quarantine, total, workers)
    return described([shard for unit in units for shard in unit.shards], digest, settings, quarantine)


def described(shards: list[ShardSummary], digest: str, settings: Settings, quarantine: Quarantine) -> dict[str, Any]:
    """The manifest's metadata of shards, see ``preprocess``.

    Raises:
        DataError: more samples are bad than is allowed of those that were not filtered out, or none is left.
    """
    covered, filtered = sum(shard.covers for shard in shards), sum(shard.filtered_total for shard in shards)
    found = summary.metadata(shards, quarantine.counts())
    if not found["samples"] and filtered > len(quarantine.entries):
        reasons = ", ".join(f"{count} × {reason}" for reason, count in found["filtered"].items())
        raise DataError(f"the filters left none of {covered} samples: {reasons}", "loosen them, see data.filters")
    quarantine.check(covered - filtered)
    several = {"resolutions": list(settings.resolutions)} if settings.also else {}
    return found | {"encoder": digest, "resolution": settings.res} | several


def encode(
    source: RawSource,
    names: list[str],
    encoder: EncoderSpec | Encoder,
    out: OutputFolder,
    settings: Settings,
    quarantine: Quarantine,
    total: int | None = None,
    workers: int = 0,
) -> tuple[list[UnitShards], str]:
    """Encodes the named units and writes down the quarantine, without judging its share; see ``work_through``."""
    if isinstance(encoder, EncoderSpec):
        spec = encoding_spec(source, encoder, settings)
        return work_through(names, spec, out, quarantine, "encoding", total, workers)
    return work_through(names, Encoding(source, encoder, settings), out, quarantine, "encoding", total, workers)
