"""What committed shards hold, without their samples; from it the manifest's metadata."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from atelier.data.quarantine import Quarantined
from atelier.data.shards import INDEX
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder


@dataclass(frozen=True)
class ShardSummary:
    """A committed shard.

    Attributes:
        name: of its tar (which is not there when ``samples`` is 0).
        samples: in it.
        covers: raw examples that it stands for, quarantined ones included.
        last: whether it ends its raw unit (a tar, say).
        fields: name → [dtype, shape], null where a dimension varies.
        quarantined: the raw examples that are not in it.
        boxes: counts of kept, clipped and dropped boxes.
        filtered: how many raw examples were filtered out, by reason.
        counts: what the encoder counted.
    """

    name: str
    samples: int
    covers: int
    last: bool
    fields: dict[str, list[Any]]
    quarantined: tuple[Quarantined, ...]
    boxes: dict[str, int]
    filtered: dict[str, int]
    counts: dict[str, int]

    @property
    def filtered_total(self) -> int:
        """How many raw examples were filtered out."""
        return sum(self.filtered.values())

    @classmethod
    def of_index(cls, text: bytes) -> "ShardSummary":
        """From the index file that lies beside the shard."""
        index = json.loads(text)
        return cls(
            index["shard"],
            len(index["samples"]),
            int(index["covers"]),
            bool(index["last"]),
            index["fields"],
            tuple(Quarantined(key, reason) for key, reason in index["quarantined"]),
            index["boxes"],
            index.get("filtered", {}),
            index.get("counts", {}),
        )


def committed(out: OutputFolder, name: str, done: Mapping[str, Any]) -> ShardSummary | None:
    """A shard's summary when it and its index are committed.

    Args:
        done: ``out.committed()``.
    """
    path = out.path / (name + INDEX)
    if path.name not in done or not path.is_file():
        return None
    summary = ShardSummary.of_index(path.read_bytes())
    return summary if not summary.samples or name in done else None


def metadata(summaries: Iterable[ShardSummary], reasons: dict[str, int]) -> dict[str, Any]:
    """What a manifest says of shards in their order, see ``preprocess``.

    Raises:
        DataError: two shards have fields of another kind.
    """
    fields: dict[str, list[Any]] = {}
    boxes, filtered, counts, samples, shards = Counter[str](), Counter[str](), Counter[str](), 0, []
    for summary in summaries:
        for name, (dtype, shape) in summary.fields.items():
            known = fields.setdefault(name, [dtype, shape])
            if known[0] != dtype or len(known[1]) != len(shape) or known[1][1:] != shape[1:]:
                raise DataError(
                    f"{summary.name}: field {name} is {dtype} {shape}, elsewhere {known}",
                    "this is an error of the recipe's encoder",
                )
            fields[name] = [dtype, [a if a == b else None for a, b in zip(known[1], shape, strict=True)]]
        boxes.update(summary.boxes)
        filtered.update(summary.filtered)
        counts.update(summary.counts)
        samples += summary.samples
        if summary.samples:
            shards.append({"name": summary.name, "samples": summary.samples})
    return {
        "samples": samples,
        "quarantined": reasons,
        "filtered": dict(filtered.most_common()),
        **({"counts": dict(sorted(counts.items()))} if counts else {}),
        "fields": fields,
        "boxes": {name: boxes[name] for name in ("kept", "clipped", "dropped")},
        "shards": shards,
    }
