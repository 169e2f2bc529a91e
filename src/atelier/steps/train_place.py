"""Where a training's ranks run: on this machine, or on a cluster's nodes that share no disk with it.

``ATELIER_TRAINJOB`` decides (see ``trainjob_settings``). The two differ in where the plan lies that the ranks read,
where they write, and how what they wrote comes into the step's folder; what they train is the same.
"""

from typing import Any, Protocol

from atelier.errors import ConfigError, StorageError
from atelier.steps.runtime import StepContext
from atelier.storage.atomic import write_bytes
from atelier.storage.uri import is_local, join
from atelier.training.launcher import Launcher, LocalLauncher
from atelier.training.trainjob_settings import TrainJobSettings

LOGS, PLAN = ".logs", ".plan.json"
SMALL = ("train.json", "metrics.jsonl", "start.json")
"""What the step itself reads of a training."""


class Place(Protocol):
    """A place for the ranks.

    Attributes:
        launcher: starts them there.
        folder: the ranks' own folder, as they see it.
        outputs_at: see ``engine.train``.
        watched: arguments of ``EndUnwatched``; None where the ranks die with their launcher anyway.
    """

    launcher: Launcher
    folder: str
    outputs_at: str | None
    watched: dict[str, Any] | None

    def write_plan(self, text: str) -> str:
        """Puts the plan where all ranks can read it; returns the place's path or URI."""
        ...

    def collect(self) -> None:
        """Has the training's files in the step's output.

        Raises:
            StorageError: they are not there.
        """
        ...


class Here:
    """This machine: the ranks write into the step's folder."""

    def __init__(self, context: StepContext, threads: int) -> None:
        self.outputs_at: str | None = None
        self.watched: dict[str, Any] | None = None
        self.launcher: Launcher = LocalLauncher(threads=threads)
        self.folder = str(context.out.path)
        self._plan = context.out.path / PLAN

    def write_plan(self, text: str) -> str:
        write_bytes(self._plan, text.encode())
        return str(self._plan)

    def collect(self) -> None:
        """They are there."""


class OnCluster:
    """Nodes of a TrainJob: plan and files go over S3, under the very prefix of the step's output.

    The plan is an object and no variable: it holds the manifest of all shards, which may be megabytes.
    """

    def __init__(self, context: StepContext, settings: TrainJobSettings, title: str) -> None:
        from atelier.storage import s3
        from atelier.training.delivery import delivered
        from atelier.training.trainjob.heartbeat import NAME
        from atelier.training.trainjob.launcher import TrainJobLauncher

        sign = join(context.out.uri, NAME)
        self._out = context.out
        self.outputs_at: str | None = context.out.uri
        self.folder = f"{settings.scratch.rstrip('/')}/{context.name}-{context.key}"
        self.launcher: Launcher = TrainJobLauncher(
            settings,
            key=context.key,
            title=title,
            logs_uri=join(context.out.uri, LOGS),
            complete=lambda: delivered(context.out.uri) is not None,
            beat=lambda: s3.write_bytes(sign, b""),
        )
        self.watched: dict[str, Any] | None = {"sign": sign, "limit_s": settings.unwatched_s}

    def write_plan(self, text: str) -> str:
        from atelier.storage import s3

        place = join(self._out.uri, PLAN)
        s3.write_bytes(place, text.encode())
        return place

    def collect(self) -> None:
        from atelier.storage.transfer import download
        from atelier.training.delivery import delivered

        entries = delivered(self._out.uri)
        if entries is None:
            raise StorageError(
                f"{self._out.uri}: the training is complete, but its files are not all there",
                "run again: what is missing is made anew",
            )
        self._out.adopt(entries)
        for entry in entries:
            if entry.path in SMALL:
                download(join(self._out.uri, entry.path), self._out.path / entry.path, entry.sha256, progress=False)


def place_for(context: StepContext, settings: TrainJobSettings | None, title: str, threads: int) -> Place:
    """The one decision where a training runs.

    Args:
        settings: of the cluster; None: this machine.
        title: names it to a person who looks at the cluster.
        threads: of each rank's own arithmetic, here.
    """
    return Here(context, threads) if settings is None else OnCluster(context, settings, title)


def share(changes: dict[str, Any], settings: TrainJobSettings | None, artifacts: str = "") -> dict[str, Any]:
    """Fields of the training configuration with the processes and nodes that a cluster's profile gives.

    Args:
        changes: as ``train_overrides`` gives them; what they say of processes and nodes must fit.
        artifacts: URI of the folder of all outputs; "" where it is not known yet.

    Raises:
        ConfigError: it does not fit, or the artifacts are where the nodes cannot reach them.
    """
    if settings is None:
        return changes
    if artifacts and is_local(artifacts):
        raise ConfigError(
            f"artifacts {artifacts} is a folder of this machine, and the training runs on a cluster",
            "give a bucket, e.g. s3://bucket/prefix",
        )
    given = {"processes": settings.processes, "nodes": settings.nodes}
    for name, value in given.items():
        if name in changes and changes[name] != value:
            raise ConfigError(
                f"{name} is {changes[name]}, the cluster's profile gives {value} ({settings.nodes} nodes of "
                f"{settings.processes_per_node} processes)",
                f"leave {name} out, or choose a profile of that size",
            )
    return changes | given
