"""Previews outlive the machine that drew them: they go to S3 at each save and come back at a resume elsewhere."""

import sys
from pathlib import Path

from atelier.errors import AtelierError
from atelier.storage import s3
from atelier.storage.uri import join
from atelier.training.callbacks.base import Callback
from atelier.training.run import TrainingRun

FOLDER = "previews"


class KeepPreviews(Callback):
    """Stands before ``DrawPreviews``, which prunes what is later than the resumed step; works in rank 0.

    The logs travel with the checkpoints; pictures would make each checkpoint larger than the one before. A server that
    fails costs pictures, never the training: at the end all that are here are delivered.

    Args:
        place: the ``s3://`` prefix of the training's outputs.
    """

    def __init__(self, place: str) -> None:
        self.place = join(place, FOLDER)
        self._kept: set[str] = set()

    def on_start(self, run: TrainingRun) -> None:
        if not run.ranks.first or run.step == 0:
            return
        folder = run.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with _warned("earlier previews were not fetched"):
            for name in s3.sizes(self.place):
                if not (folder / name).exists():
                    (folder / name).write_bytes(s3.read_bytes(join(self.place, name)))
                self._kept.add(name)

    def on_save(self, run: TrainingRun) -> None:
        if run.ranks.first:
            with _warned("previews were not kept"):
                for path in self._new(run.folder / FOLDER):
                    s3.upload(path, join(self.place, path.name))
                    self._kept.add(path.name)

    def _new(self, folder: Path) -> list[Path]:
        return [path for path in sorted(folder.glob("step-*.png")) if path.name not in self._kept]


class _warned:
    """Turns an error of the storage into a line of the log."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, AtelierError):
            print(f"warning: {self.what}: {error.what}", file=sys.stderr, flush=True)
            return True
        return False
