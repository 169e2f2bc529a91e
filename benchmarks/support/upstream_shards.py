"""The files that IGLIGEN-XL trains from, as its data set reads them, and the same samples in our shards.

A shard is two pickled ``.npy`` files (facts of the published data sets sa1b-sdxl-latents-512 and sa-1b_boxes_sdxl):
a dict of ``indices`` and ``latents`` fp16 [N, 4, 64, 64], and an object array of rows [index, caption, boxes cxcywh
fp16 [n, 4], confidence fp16 [n], phrases, (H, W)].
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atelier.data.batch_reader import column
from atelier.data.shards import ShardWriter
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest

LATENT, MAX_BOXES, MIN_CONFIDENCE = (4, 64, 64), 32, 0.25


def _rows(shard: int, count: int) -> list[list[Any]]:
    rng = np.random.default_rng([shard, 1])
    rows = []
    for number in range(count):
        boxes = int(rng.integers(1, 24))
        centres, sides = rng.uniform(0.2, 0.8, (boxes, 2)), rng.uniform(0.02, 0.4, (boxes, 2))
        rows.append([
            number,
            f"The image features a photograph of many things, number {number}. " * 4,
            np.concatenate([centres, sides], 1).astype(np.float16),
            rng.uniform(0.2, 0.9, boxes).astype(np.float16),
            [f"a thing of kind {kind}" for kind in range(boxes)],
            (1500, 2250),
        ])  # fmt: skip
    return rows


def _latents(shard: int, count: int) -> np.ndarray:
    values = np.random.default_rng(shard).standard_normal((count, *LATENT), dtype=np.float32)
    return values.astype(np.float16)


def write_upstream(folder: Path, shards: int, per_shard: int) -> list[Path]:
    """The two files of each shard; returns those with the latents."""
    (folder / "boxes").mkdir(parents=True)
    (folder / "latents").mkdir()
    paths = []
    for shard in range(shards):
        rows = _rows(shard, per_shard)
        table = np.empty((per_shard, 6), object)
        for number, row in enumerate(rows):
            for place, value in enumerate(row):
                table[number, place] = value
        name = f"sa_{shard:06d}.npy"
        np.save(folder / "boxes" / name, table, allow_pickle=True)
        content: Any = {"indices": list(range(per_shard)), "latents": _latents(shard, per_shard)}
        np.save(folder / "latents" / name, np.array(content, dtype=object), allow_pickle=True)
        paths.append(folder / "latents" / name)
    return paths


def read_upstream(paths: list[Path], batch_size: int) -> Iterator[dict[str, Any]]:
    """Upstream's loop (facts/gligen.md §3.2): whole shards, rows shuffled in place, ready batches, rests dropped."""
    for path in paths:
        table = np.load(path.parents[1] / "boxes" / path.name, allow_pickle=True)
        content = np.load(path, allow_pickle=True).item()
        place = {index: row for row, index in enumerate(content["indices"])}
        np.random.shuffle(table)
        samples = []
        for index, caption, boxes, confidence, phrases, size in table:
            if index not in place:
                continue
            threshold = MIN_CONFIDENCE
            if len(confidence) > MAX_BOXES:
                threshold = max(threshold, np.sort(confidence)[-MAX_BOXES])
            keep = confidence > threshold
            x, y, width, height = boxes[keep].T
            corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1).clip(0, 1)
            padded, mask = np.zeros((MAX_BOXES, 4), np.float32), np.zeros(MAX_BOXES, np.float32)
            padded[: len(corners)], mask[: len(corners)] = corners, 1
            chosen = [phrase for phrase, good in zip(phrases, keep, strict=True) if good]
            samples.append((content["latents"][place[index]], padded, mask, chosen, caption, size))
            if len(samples) == batch_size:
                latents, all_boxes, masks, texts, captions, sizes = zip(*samples, strict=True)
                yield {
                    "latent": np.stack(latents), "boxes": np.stack(all_boxes), "masks": np.stack(masks),
                    "phrases": list(texts), "caption": list(captions), "size": list(sizes),
                }  # fmt: skip
                samples = []


class UpstreamDataset(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The shards again and again, for a ``DataLoader`` without batching: upstream's data set yields ready batches."""

    def __init__(self, paths: list[Path], batch_size: int) -> None:
        self.paths, self.batch_size = paths, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for batch in read_upstream(self.paths, self.batch_size):
                yield {
                    name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                    for name, value in batch.items()
                }


def write_ours(folder: Path, shards: int, per_shard: int) -> Manifest:
    """The same samples as our preprocessing leaves them: boxes chosen and converted once, ahead."""
    out = OutputFolder(str(folder), folder.with_name(folder.name + ".work"))
    entries, fields = [], {}
    for shard in range(shards):
        writer = ShardWriter(out, f"sa_{shard:06d}.tar")
        for row, latent in zip(_rows(shard, per_shard), _latents(shard, per_shard), strict=True):
            index, caption, boxes, confidence, phrases, size = row
            keep = confidence > MIN_CONFIDENCE
            x, y, width, height = boxes[keep].T
            corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1).clip(0, 1)
            record = {
                "key": f"sa_{index}",
                "caption": caption,
                "phrases": [phrase for phrase, good in zip(phrases, keep, strict=True) if good],
                "boxes": [[float(value) for value in box] for box in corners],
                "original_size": list(size),
            }
            writer.add(f"sa_{shard * 100_000 + index}", {"latent": latent}, record)
        index_of_shard = writer.close({})
        fields = index_of_shard["fields"]
        entries.append({"name": index_of_shard["shard"], "samples": per_shard})
    return out.finish("shards", {"samples": shards * per_shard, "fields": fields, "shards": entries}, {})


def collate_ours(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch that ``read_upstream`` yields."""
    boxes = np.zeros((len(samples), MAX_BOXES, 4), np.float32)
    masks = np.zeros((len(samples), MAX_BOXES), np.float32)
    for row, sample in enumerate(samples):
        found = sample["json"]["boxes"][:MAX_BOXES]
        if found:
            boxes[row, : len(found)], masks[row, : len(found)] = found, 1
    records = [sample["json"] for sample in samples]
    return {
        "latent": column(samples, "latent"), "boxes": boxes, "masks": masks,
        "phrases": [record["phrases"] for record in records], "caption": [record["caption"] for record in records],
        "size": [record["original_size"] for record in records],
    }  # fmt: skip
