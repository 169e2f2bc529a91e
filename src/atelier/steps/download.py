"""Download: raw data from wherever they lie into one folder of the run's artifacts."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from atelier.data import raw_form
from atelier.data.raw_form import RawForm
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
    """A manifest of kind ``<form>-raw``: ``tars/``, ``captions/``, ``boxes/``, or ``images/`` and ``annotations/``.

    Files are fetched four at a time and each is committed (on S3: uploaded, and its local copy dropped) as soon
    as it is complete, so that an interrupted run goes on and an S3 root needs little local disk.

    Args:
        source: kind ``source-uris`` (metadata: ``form`` and patterns by what they are for, see ``data.raw_form`` and
            ``storage.transfer.expand``; ``#sha256=`` at a URL's end is verified) or ``<form>-source`` (a folder).

    Raises:
        ConfigError: two sources of one name, or files that do not make a data set, e.g. a tar without boxes.
        DataError: wrong checksum, nothing fits. StorageError, ServiceError: a source cannot be read.
    """
    name = source.kind.removesuffix("-source") if source.files else str(source.metadata.get("form", "sa1b"))
    form = raw_form.form(name)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        wanted = _from_folder(form, source) if source.files else _from_patterns(form, source)
        form.check(wanted)
        _fetch_all(wanted, ctx.out)
        folders = dict.fromkeys(form.folders.values())
        counts = {folder: sum(name.startswith(folder + "/") for name in wanted) for folder in folders}
        images = {"images": source.metadata["images"]} if "images" in source.metadata else {}
        return f"{form.name}-raw", counts | images

    return run_step(
        name="download",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"source": source},
        params={},
        artifacts=artifacts,
    )


def _from_folder(form: RawForm, source: Manifest) -> dict[str, str]:
    """Destination → URL, for a published folder; the manifest's own sha256 is verified."""
    wanted: dict[str, str] = {}
    for entry in source.files:
        kind = form.kind_of(entry.path)
        if kind:
            _add(wanted, form.folders[kind], f"{join(source.uri, entry.path)}#sha256={entry.sha256}")
    return wanted


def _from_patterns(form: RawForm, source: Manifest) -> dict[str, str]:
    wanted, beside = dict[str, str](), 0
    for kind, folder in form.folders.items():
        for url in expand(str(source.metadata[kind])) if kind in source.metadata else ():
            if form.beside and file_name(url).endswith(form.beside):
                beside += 1
            else:
                _add(wanted, folder, url)
    if beside:
        print(f"download: {beside} files of no use left out ({', '.join(form.beside)})", flush=True)
    return wanted


def _add(wanted: dict[str, str], folder: str, url: str) -> None:
    name = f"{folder}/{file_name(url)}"
    if name in wanted:
        raise ConfigError(f"{url} and {wanted[name]} would both become {name}", "give each file a name of its own")
    wanted[name] = url


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
