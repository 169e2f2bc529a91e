"""Work on a source's units, here in one lane or in several processes; resumable shard by shard.

The work of one accelerator is a ``Lane``: stages in threads around one model. With one accelerator, or none, the
lane runs in this process. With several, each has a process of its own with its own lane (``worker_pool``): one
interpreter would not feed eight GPUs, and a model is loaded once a GPU, not once a decoder. On CPU cores one lane
fills the machine (torch computes with all cores, decoding takes what is left), so one is the default there and more
would only copy the model.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from atelier.data import summary
from atelier.data.lane import Lane, shard_name
from atelier.data.quarantine import Quarantine, Quarantined
from atelier.data.summary import ShardSummary
from atelier.data.work import Work, WorkSpec
from atelier.data.worker_pool import run_in_processes
from atelier.progress import Progress
from atelier.storage.folder import OutputFolder

#: The device files of Nvidia's and AMD's drivers, and of WSL.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class UnitShards(NamedTuple):
    """The committed shards of a raw unit, from its first on."""

    unit: str
    shards: list[ShardSummary]

    @property
    def complete(self) -> bool:
        """Whether they cover all of it."""
        return bool(self.shards) and self.shards[-1].last


def work_through(
    names: list[str],
    work: Work | WorkSpec,
    out: OutputFolder,
    quarantine: Quarantine,
    label: str,
    total: int | None = None,
    workers: int = 0,
) -> tuple[list[UnitShards], str]:
    """Works through the named units and writes down the quarantine, without judging its share.

    Args:
        work: its specification, or the work itself (then one worker).
        label: of the progress, e.g. "encoding".
        total: images in all of them; None: not known, so bad ones are not judged early.
        workers: processes; 0 is one for each visible GPU, one without any.

    Returns:
        What was made of each unit, and the work's digest.

    Raises:
        DataError: more samples are bound to be bad than ``quarantine`` allows. AtelierError: a worker died or failed.
    """
    before = list(committed_shards(out, names))
    waiting = [unit.unit for unit in before if not unit.complete]
    gpus = visible_gpus()
    workers = max(1, min(workers or len(gpus), len(waiting)))
    if workers > 1 and not isinstance(work, WorkSpec):
        raise ValueError("several workers need the work's specification: each makes its own")
    covered = sum(shard.covers for unit in before for shard in unit.shards)
    filtered = sum(shard.filtered_total for unit in before for shard in unit.shards)
    progress = Progress(label, total, "images", start=covered)
    quarantine.replace(bad for unit in before for shard in unit.shards for bad in shard.quarantined)

    def report(images: int, bad: list[Quarantined], dropped: int) -> None:
        nonlocal filtered
        filtered += dropped
        for entry in bad:
            quarantine.add(entry.key, entry.reason)
        if total is not None:
            quarantine.check_ahead(total)
        fields = ({"workers": workers} if workers > 1 else {}) | ({"filtered": filtered} if filtered else {})
        progress.advance(images, quarantined=len(quarantine.entries), **fields)

    try:
        if workers > 1 and isinstance(work, WorkSpec):
            digest = run_in_processes(waiting, work, out, report, workers, gpus)
            out.refresh()
        else:
            own = work.make() if isinstance(work, WorkSpec) else work
            digest = own.digest
            if waiting:
                Lane(own, out, report).run(waiting)
        after = list(committed_shards(out, names))
        quarantine.replace(bad for unit in after for shard in unit.shards for bad in shard.quarantined)
    finally:
        quarantine.write()
    return after, digest


def committed_shards(out: OutputFolder, names: list[str]) -> Iterator[UnitShards]:
    """What is committed of each unit."""
    done = out.committed()
    for name in names:
        shards: list[ShardSummary] = []
        while not (shards and shards[-1].last):
            shard = summary.committed(out, shard_name(name, len(shards)), done)
            if shard is None:
                break
            shards.append(shard)
        yield UnitShards(name, shards)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; CUDA is not initialised."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return []  # spares importing torch
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
