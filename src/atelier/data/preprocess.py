"""Raw tars to training shards: decode, crop, select boxes, encode in batches, write; resumable shard by shard."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from atelier.data.captions import CaptionTable
from atelier.data.geometry import decode_image, time_ids, top_left
from atelier.data.quarantine import Quarantine, Quarantined
from atelier.data.sa1b import RawExample, read_tar
from atelier.data.sa1b_select import MAX_BOXES, MIN_CONFIDENCE, select
from atelier.data.shards import INDEX, ShardWriter
from atelier.errors import DataError
from atelier.progress import Progress
from atelier.storage.folder import OutputFolder

DECODERS = 4


class Encoder(Protocol):
    """What a recipe supplies: images and texts to the arrays that its training needs."""

    digest: str

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """Encodes a batch.

        Args:
            images: uint8 [B, res, res, 3].
            examples: their captions, phrases and boxes (already selected).

        Returns:
            B dicts of arrays by field name, dtypes fixed; e.g. latent, text states, phrase embeddings.
        """
        ...


@dataclass(frozen=True)
class RawTar:
    """One tar of the source and its boxes file (None: a source without boxes)."""

    tar: Path
    boxes: Path | None = None


Decoded = tuple[RawExample, np.ndarray] | Quarantined


def preprocess(
    raw_tars: Iterable[RawTar],
    captions: CaptionTable,
    encoder: Encoder,
    out: OutputFolder,
    res: int,
    samples_per_shard: int,
    batch: int,
    quarantine: Quarantine,
    total: int | None = None,
    min_confidence: float = MIN_CONFIDENCE,
    max_boxes: int = MAX_BOXES,
) -> dict[str, Any]:
    """Writes ``<tar's stem>-<number>.tar`` shards into ``out``.

    A shard covers a fixed range of its tar's examples, so an interrupted run goes on after the last committed
    shard: what it covers is read past, neither decoded nor encoded. Same input and encoder, same bytes.

    Args:
        raw_tars: asked for one at a time, so that remote ones can be fetched and let go of as they are used.
        total: number of images, for progress only.

    Returns:
        The manifest's metadata: samples, quarantined (count by reason), resolution, encoder (digest), fields
        (name → [dtype, shape], null where a dimension varies), boxes (counts), shards (name, samples).

    Raises:
        DataError: a tar is damaged, or more samples are bad than ``quarantine`` allows.
    """
    progress = Progress("encoding", total, "images")
    indices: list[dict[str, Any]] = []
    try:
        with ThreadPoolExecutor(DECODERS) as pool:
            for raw in raw_tars:
                stream = read_tar(raw.tar, captions, raw.boxes)
                for number in itertools.count():
                    name = f"{raw.tar.name.split('.', 1)[0]}-{number:04d}.tar"
                    index = _committed_index(out, name)
                    if index is not None:
                        covered = sum(1 for _ in itertools.islice(stream, int(index["covers"])))
                        progress.advance(covered)
                    else:
                        items = itertools.islice(stream, samples_per_shard)
                        chosen = (_with_selected_boxes(item, min_confidence, max_boxes) for item in items)
                        index = _write_shard(
                            _decoded(chosen, res, pool), encoder, ShardWriter(out, name), res, batch, progress
                        )
                    if index is None:  # the tar's examples filled its last shard exactly
                        break
                    indices.append(index)
                    for key, reason in index["quarantined"]:
                        quarantine.add(key, reason)
                    if index["covers"] < samples_per_shard:  # the tar's last shard
                        break
    finally:
        quarantine.write()
    quarantine.check(sum(int(index["covers"]) for index in indices))
    return _metadata(indices, encoder, res, quarantine)


def _committed_index(out: OutputFolder, name: str) -> dict[str, Any] | None:
    committed = out.committed()
    if name + INDEX not in committed:
        return None
    path = out.path / (name + INDEX)
    if not path.is_file():
        return None
    index = json.loads(path.read_bytes())
    return index if not index["samples"] or name in committed else None


def _with_selected_boxes(item: RawExample | Quarantined, minimum: float, limit: int) -> RawExample | Quarantined:
    if isinstance(item, Quarantined):
        return item
    rows = select(item.scores, minimum, limit)
    return replace(
        item,
        boxes=item.boxes[rows],
        scores=item.scores[rows],
        phrases=tuple(item.phrases[row] for row in rows.tolist()),
    )


def _decoded(items: Iterable[RawExample | Quarantined], res: int, pool: ThreadPoolExecutor) -> Iterator[Decoded]:
    """Decodes in threads (Pillow lets go of the interpreter), a few images ahead, in order."""

    def decode(item: RawExample | Quarantined) -> Decoded:
        if isinstance(item, Quarantined):
            return item
        try:
            return item, decode_image(item.image, res)
        except ValueError as error:
            return Quarantined(item.key, str(error))

    source, ahead = iter(items), 8 * DECODERS
    waiting = [pool.submit(decode, item) for item in itertools.islice(source, ahead)]
    for done in range(2**62):
        if done >= len(waiting):
            return
        yield waiting[done].result()
        waiting[done] = None  # type: ignore[call-overload]  # lets go of the image
        waiting.extend(pool.submit(decode, item) for item in itertools.islice(source, 1))


def _write_shard(
    items: Iterator[Decoded], encoder: Encoder, writer: ShardWriter, res: int, batch: int, progress: Progress
) -> dict[str, Any] | None:
    covers, quarantined, boxes = 0, [], Counter[str]()
    try:
        while group := list(itertools.islice(items, batch)):
            covers += len(group)
            good = [item for item in group if not isinstance(item, Quarantined)]
            quarantined += [[item.key, item.reason] for item in group if isinstance(item, Quarantined)]
            if good:
                examples = [example for example, _ in good]
                encoded = encoder.encode(np.stack([image for _, image in good]), examples)
                if len(encoded) != len(good):
                    raise DataError(
                        f"the encoder returned {len(encoded)} samples for {len(good)} images",
                        "this is an error of the recipe's encoder",
                    )
                for example, arrays in zip(examples, encoded, strict=True):
                    writer.add(example.key, arrays, _record(example, res))
                    boxes.update(kept=len(example.boxes), clipped=example.clipped, dropped=example.dropped)
            progress.advance(len(group))
        if not covers:
            writer.abandon()
            return None
        return writer.close({"covers": covers, "quarantined": quarantined, "boxes": dict(boxes)})
    except BaseException:
        writer.abandon()
        raise


def _record(example: RawExample, res: int) -> dict[str, Any]:
    """A sample's json: everything that is not an array. Boxes are xyxy in [0, 1] of the crop."""
    return {
        "key": example.key,
        "caption": example.caption,
        "phrases": list(example.phrases),
        "boxes": [[float(value) for value in box] for box in example.boxes],
        "scores": [float(score) for score in example.scores],
        "original_size": list(example.original_size),
        "crop_top_left": list(top_left(example.original_size, res)),
        "time_ids": list(time_ids(example.original_size, res)),
    }


def _metadata(indices: list[dict[str, Any]], encoder: Encoder, res: int, quarantine: Quarantine) -> dict[str, Any]:
    fields: dict[str, list[Any]] = {}
    for index in indices:
        for name, (dtype, shape) in index["fields"].items():
            known = fields.setdefault(name, [dtype, shape])
            if known[0] != dtype or len(known[1]) != len(shape):
                raise DataError(
                    f"{index['shard']}: field {name} is {dtype} {shape}, elsewhere {known}",
                    "this is an error of the recipe's encoder",
                )
            fields[name] = [dtype, [a if a == b else None for a, b in zip(known[1], shape, strict=True)]]
    boxes = Counter[str]()
    for index in indices:
        boxes.update(index["boxes"])
    return {
        "samples": sum(len(index["samples"]) for index in indices),
        "quarantined": quarantine.counts(),
        "resolution": res,
        "encoder": encoder.digest,
        "fields": fields,
        "boxes": {name: boxes[name] for name in ("kept", "clipped", "dropped")},
        "shards": [{"name": index["shard"], "samples": len(index["samples"])} for index in indices if index["samples"]],
    }
