"""Download: tars, captions and boxes from wherever they lie into one folder of the run's artifacts."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from atelier.storage.transfer import download, expand, file_name
from atelier.storage.uri import join

VERSION = 1
PARALLEL = 4


def run(*, source: Manifest, artifacts: str) -> Manifest:
    """A manifest of kind ``sa1b-raw`` with ``tars/``, ``captions/`` and ``boxes/``.

    Files are fetched four at a time and each is committed (on S3: uploaded, and its local copy dropped) as soon
    as it is complete, so that an interrupted run goes on and an S3 root needs little local disk.

    Args:
        source: kind ``source-uris`` (metadata: patterns ``tars``, ``captions``, ``boxes``, see
            ``storage.transfer.expand``; ``#sha256=`` at a URL's end is verified) or ``sa1b-source`` (a folder).

    Raises:
        ConfigError: two sources of one name, or a tar without boxes. DataError: wrong checksum, nothing fits.
        StorageError, ServiceError: a source cannot be read.
    """

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        wanted = _from_folder(source) if source.files else _from_patterns(source)
        _check_pairs(wanted)
        _fetch_all(wanted, ctx.out)
        counts = {kind: sum(name.startswith(kind + "/") for name in wanted) for kind in ("tars", "captions", "boxes")}
        images = {"images": source.metadata["images"]} if "images" in source.metadata else {}
        return "sa1b-raw", counts | images

    return run_step(
        name="download",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"source": source},
        params={},
        artifacts=artifacts,
    )


def _from_folder(source: Manifest) -> dict[str, str]:
    """Destination → URL, for a published folder; the manifest's own sha256 is verified."""
    kinds = {".tar": "tars", ".parquet": "captions", ".npy": "boxes"}
    wanted: dict[str, str] = {}
    for entry in source.files:
        kind = kinds.get(PurePosixPath(entry.path).suffix)
        if kind:
            _add(wanted, kind, f"{join(source.uri, entry.path)}#sha256={entry.sha256}")
    return wanted


def _from_patterns(source: Manifest) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for kind in ("tars", "captions", "boxes"):
        for url in expand(str(source.metadata[kind])):
            _add(wanted, kind, url)
    return wanted


def _add(wanted: dict[str, str], kind: str, url: str) -> None:
    name = f"{kind}/{file_name(url)}"
    if name in wanted:
        raise ConfigError(f"{url} and {wanted[name]} would both become {name}", "give each file a name of its own")
    wanted[name] = url


def _check_pairs(wanted: dict[str, str]) -> None:
    stems = {kind: {_stem(name) for name in wanted if name.startswith(kind + "/")} for kind in ("tars", "boxes")}
    if not stems["tars"]:
        raise ConfigError("the source has no tars", "give the URIs of SA-1B tars")
    without = sorted(stems["tars"] - stems["boxes"])
    if without:
        raise ConfigError(
            f"{len(without)} tars have no boxes file of their name: {', '.join(without[:5])}",
            "boxes/<name>.npy must be given for each <name>.tar",
        )


def _stem(name: str) -> str:
    return PurePosixPath(name).name.split(".", 1)[0]


def _fetch_all(wanted: dict[str, str], out: OutputFolder) -> None:
    done = out.committed()
    waiting = [name for name in wanted if name not in done]
    progress = Progress("downloading", len(wanted), "files", start=len(wanted) - len(waiting))
    lock, moved = threading.Lock(), 0

    def count(new_bytes: int, files: int = 0) -> None:
        nonlocal moved
        with lock:
            moved += new_bytes
            progress.to(progress.done + files, MB=moved / 1e6)

    def fetch(name: str) -> None:
        download(wanted[name], out.path / name, progress=count)
        out.commit(name, drop_local=True)
        count(0, files=1)

    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(fetch, name) for name in waiting]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
