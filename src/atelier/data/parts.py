"""One work split over machines: part i of n takes every n-th unit (a tar, say); merging gives what one would have made.

Each part writes a folder of its own, so parts never meet: no lock, no race, and a part that was killed has no
manifest, hence cannot be merged half-done.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atelier.data import summary
from atelier.data.encoder import Encoder, EncoderSpec
from atelier.data.lane import shard_name
from atelier.data.preprocess import described, encode
from atelier.data.quarantine import Quarantine
from atelier.data.raw_source import RawSource
from atelier.data.settings import Settings
from atelier.data.shards import INDEX
from atelier.data.summary import ShardSummary
from atelier.data.units import UnitShards
from atelier.errors import ConfigError, DataError
from atelier.storage.atomic import os_errors, replace_file
from atelier.storage.digest import sha256_json
from atelier.storage.folder import InputFolder, OutputFolder
from atelier.storage.manifest import Manifest

KIND = "shards-part"
COPIES = 8


#: Works through named units and writes down the quarantine, see ``units.work_through``.
WorkThrough = Callable[[list[str], Quarantine], tuple[list[UnitShards], str]]


def preprocess_part(
    source: RawSource,
    encoder: EncoderSpec | Encoder,
    out: OutputFolder,
    settings: Settings,
    index: int,
    count: int,
    workers: int = 0,
) -> dict[str, Any]:
    """Part ``index`` (from 0) of ``count``, see ``preprocess``; finish ``out`` as kind ``KIND`` with what it returns.

    How many samples are bad is judged in ``merge``: a part may well hold all the bad ones.

    Raises:
        ConfigError: no such part. AtelierError: as ``preprocess``.
    """

    def work(names: list[str], quarantine: Quarantine) -> tuple[list[UnitShards], str]:
        return encode(source, names, encoder, out, settings, quarantine, workers=workers)

    made = take_part(source.units, work, out, asdict(settings), index, count)
    return made | {"encoder": made["digest"], "resolution": settings.res}


def take_part(
    units: Sequence[str], work: WorkThrough, out: OutputFolder, settings: dict[str, Any], index: int, count: int
) -> dict[str, Any]:
    """Part ``index`` (from 0) of ``count`` of any work; finish ``out`` as kind ``KIND`` with what it returns.

    Args:
        units: all of the source's.
        settings: everything beside source and models that decides the bytes; JSON values, for ``merge_parts``.

    Raises:
        ConfigError: no such part. AtelierError: as ``work``.
    """
    if not 0 <= index < count:
        raise ConfigError(f"part {index} of {count}", "parts count from 0")
    made, digest = work(list(units[index::count]), Quarantine(1.0, out.path / "quarantine.jsonl"))
    return {
        "part": {"index": index, "count": count, "source": _source_digest(units, settings, digest)},
        "units": [{"name": unit.unit, "shards": len(unit.shards)} for unit in made],
        "digest": digest,
    }


def _source_digest(units: Sequence[str], settings: dict[str, Any], digest: str) -> str:
    return sha256_json({"units": list(units), "settings": settings, "digest": digest})


def merge(
    parts: Sequence[Manifest], out: OutputFolder, settings: Settings, quarantine: Quarantine, cache: Path | None = None
) -> dict[str, Any]:
    """All parts' shards in one folder, as ``preprocess`` would have made it alone; see ``merge_parts``.

    Returns:
        The manifest's metadata, see ``preprocess``.
    """
    shards, digest = merge_parts(parts, out, asdict(settings), quarantine, cache)
    return described(shards, digest, settings, quarantine)


def merge_parts(
    parts: Sequence[Manifest],
    out: OutputFolder,
    settings: dict[str, Any],
    quarantine: Quarantine,
    cache: Path | None = None,
) -> tuple[list[ShardSummary], str]:
    """All parts' shards in one folder (hard links where it is on the same disk), as one worker would have made it.

    Args:
        parts: one manifest for each part, in any order.
        settings: as in ``take_part``.
        quarantine: ``out.path / "quarantine.jsonl"``, with the share that is allowed of all.

    Returns:
        The shards in their order, and the work's digest.

    Raises:
        DataError: a part is missing, twice there or of another run, a file is not what its manifest says, or too
            many samples are bad.
    """
    ordered = _checked(parts, settings)
    folders = [InputFolder(part, cache) for part in ordered]
    with ThreadPoolExecutor(COPIES) as pool:
        jobs = [
            pool.submit(_take, folder, entry.path, out)
            for folder in folders
            for entry in folder.manifest.files
            if entry.path != quarantine.path.name
        ]
        for job in jobs:
            job.result()
    shards = list(_summaries(folders, out))
    quarantine.replace(bad for shard in shards for bad in shard.quarantined)
    quarantine.write()
    quarantine.check(sum(shard.covers - shard.filtered_total for shard in shards))
    return shards, str(ordered[0].metadata["digest"])


def _checked(parts: Sequence[Manifest], settings: dict[str, Any]) -> list[Manifest]:
    """The parts in their order, found to be all of one run."""
    for part in parts:
        if part.kind != KIND:
            raise DataError(f"{part.uri}: of kind {part.kind}, not {KIND}", "give the outputs of one run's parts")
    ordered = sorted(parts, key=lambda part: int(part.metadata["part"]["index"]))
    found = [part.metadata["part"]["index"] for part in ordered]
    count = ordered[0].metadata["part"]["count"] if ordered else 0
    if not ordered or found != list(range(count)):
        raise DataError(f"parts {found} of {count}", "give each part once, from 0 on")
    units = [""] * sum(len(part.metadata["units"]) for part in ordered)
    for number, part in enumerate(ordered):
        for place, unit in enumerate(part.metadata["units"]):
            units[min(number + place * count, len(units) - 1)] = unit["name"]
    for part in ordered:
        if part.metadata["part"]["source"] != _source_digest(units, settings, part.metadata["digest"]):
            raise DataError(
                f"{part.uri}: the parts are not of one run (other units, settings or models)",
                "make all parts from one source with the same settings",
            )
    return ordered


def _take(folder: InputFolder, name: str, out: OutputFolder) -> None:
    """Commits a part's file under the same name, unless an interrupted merge did; its sha256 must be the stated one."""
    entry = folder.manifest.file(name)
    done = out.committed().get(name)
    if done is None:
        source, target = folder.fetch(name), out.path / name
        with os_errors(target):
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another disk, or one without hard links
                with replace_file(target) as temporary:
                    shutil.copyfile(source, temporary)
        done = out.commit(name, drop_local=not name.endswith(INDEX))
        folder.forget(name)
    if done.sha256 != entry.sha256:
        raise DataError(
            f"{folder.manifest.uri}/{name}: not what its manifest says (sha256 {done.sha256[:16]}…)",
            "delete the part's folder and make it again",
        )


def _summaries(folders: Sequence[InputFolder], out: OutputFolder) -> Iterator[ShardSummary]:
    """Every shard in the order in which one worker would have listed them: units are dealt to the parts in turn."""
    done = out.committed()
    for round_ in range(max(len(folder.manifest.metadata["units"]) for folder in folders)):
        for folder in folders:
            for unit in folder.manifest.metadata["units"][round_ : round_ + 1]:
                for number in range(unit["shards"]):
                    name = shard_name(unit["name"], number)
                    shard = summary.committed(out, name, done)
                    if shard is None:
                        raise DataError(
                            f"{folder.manifest.uri}: shard {name} is missing",
                            "delete the part's folder and make it again",
                        )
                    yield shard
