"""How every step runs: look for the output under its key, else lock, work, publish, and keep the ledger.

The key is sha256 of (step, version, code digest, parameters, digests of the inputs); the output lies at
``<artifacts>/<step>/<key>/`` and exists when its manifest and every file it names exist. Nothing else keeps cache
state, so nothing can disagree with it.
"""

import contextlib
import fcntl
import functools
import os
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata as distributions
from pathlib import Path
from types import TracebackType
from typing import Any

from atelier.errors import AtelierError, ConfigError, Preempted, StorageError
from atelier.progress import Progress
from atelier.steps import process
from atelier.steps.code_digest import code_digest
from atelier.steps.peek import NotMade, is_peeking
from atelier.steps.record import StepRecord
from atelier.storage.digest import sha256_json
from atelier.storage.folder import InputFolder, OutputFolder, existing
from atelier.storage.manifest import Manifest
from atelier.storage.uri import is_local, join, local_path

#: Libraries whose versions go into every manifest's ``made_by`` (what would be asked first when a figure differs).
VERSIONED = ("torch", "diffusers", "transformers", "deepspeed", "numpy", "kfp", "mlflow-skinny")


class StepContext:
    """What a step's ``produce`` is given.

    Attributes:
        name: the step's name.
        key: the cache key (hex), the last part of the output's URI.
        out: the folder to write into.
        inputs: the input folders by name; remote files are fetched when asked for.
        params: the parameters, as given to ``run_step``.
        run_id: the pipeline run's id, "" outside one.
        run_dir: the local run folder, None on a cluster.
    """

    def __init__(
        self, name: str, key: str, out: OutputFolder, inputs: dict[str, InputFolder], params: dict[str, Any]
    ) -> None:
        self.name, self.key, self.out, self.inputs, self.params = name, key, out, inputs, params
        self.run_id = os.environ.get("ATELIER_RUN_ID", "")
        self.run_dir = _run_dir()
        self.facts: dict[str, Any] = {}
        self._exits = contextlib.ExitStack()
        self._track: Any = None

    def note(self, **facts: Any) -> None:
        """Records facts of this very execution (rates, seconds, hosts); they stay out of the digest."""
        self.facts |= facts

    def progress(self, label: str, total: int | None, unit: str, start: int = 0) -> Progress:
        """A progress report, see ``atelier.progress.Progress``."""
        return Progress(label, total, unit, start=start)

    @property
    def track(self) -> Any:
        """The step's MLflow run, opened at the first touch and closed by the runtime."""
        if self._track is None:
            from atelier.tracking.runs import child_run

            tags = {"atelier.step": self.name, "atelier.key": self.key, "atelier.run_id": self.run_id}
            self._track = self._exits.enter_context(child_run(self.name, self.params, tags))
        return self._track


#: What a step does: writes into ``ctx.out.path`` and returns the manifest's kind and metadata.
Produce = Callable[[StepContext], tuple[str, dict[str, Any]]]


def run_step(
    *,
    name: str,
    version: int,
    module: str,
    produce: Produce,
    inputs: dict[str, Manifest],
    params: dict[str, Any],
    artifacts: str,
    extra_modules: tuple[str, ...] = (),
) -> Manifest:
    """Makes a step's output, or finds it made.

    Args:
        name: the step's name: a folder below ``artifacts``.
        version: raised when the output's meaning changes though no code does.
        module: where the step's code begins, for the code digest (``__name__``).
        produce: makes the output.
        inputs: manifests of the inputs by name; their digests go into the key.
        params: everything else that the output depends on; JSON values.
        artifacts: URI of the folder of all steps' outputs.
        extra_modules: modules the step reaches by name only, e.g. its recipe's.

    Returns:
        The output's manifest.

    Raises:
        AtelierError: as ``produce`` and the storage raise it. In a process of KFP's the message is printed without
            a traceback and the process ends with the error's exit code.
        NotMade: in a block of ``peeking``, where nothing is made.
    """
    wanted = functools.partial(_wanted, name, version, module, inputs, dict(params), artifacts, extra_modules)
    if is_peeking():
        return _look(wanted())
    with _process(name) as record:
        return _make_or_find(record, wanted(), produce)


@contextlib.contextmanager
def uncached(name: str) -> Iterator[StepRecord]:
    """A step that makes nothing to keep: its line in the ledger, its log, and errors as ``run_step`` has them."""
    with _process(name) as record:
        yield record
        record.end("done", peak_rss_mb=_peak_rss_mb())


@contextlib.contextmanager
def _process(name: str) -> Iterator[StepRecord]:
    """A step's process: its log, its line in the ledger, and what becomes of an error."""
    record = StepRecord(_run_dir(), name)
    alone = process.is_step_process()
    if alone:
        process.adopt(record.log)
    try:
        with process.environment(ATELIER_STATUS_FILE=str(record.status_file) if record.status_file else None):
            yield record
    except BaseException as error:
        _report(record, error)
        if not alone:
            raise
        process.kill_children()
        # The traceback is in the log already; KFP's executor would print it a second time.
        sys.exit(error.exit_code if isinstance(error, AtelierError) else 1)


@dataclass(frozen=True)
class _Wanted:
    """An output: what it is made of, which is what its key is made of, and where it lies."""

    name: str
    version: int
    code: str
    params: dict[str, Any]
    inputs: dict[str, Manifest]
    artifacts: str
    key: str
    uri: str

    def made_by(self) -> dict[str, Any]:
        """As its manifest names it."""
        return {
            "step": self.name,
            "version": self.version,
            "key": self.key,
            "code": self.code,
            "params": self.params,
            "inputs": {given: {"uri": m.uri, "digest": m.digest} for given, m in self.inputs.items()},
        }


def _wanted(
    name: str,
    version: int,
    module: str,
    inputs: dict[str, Manifest],
    params: dict[str, Any],
    artifacts: str,
    extra_modules: tuple[str, ...],
) -> _Wanted:
    if not artifacts:
        raise ConfigError(
            "the parameter artifacts is empty: there is no place for the outputs",
            "give a folder or a bucket, e.g. ARTIFACTS=s3://bucket/prefix",
        )
    code = code_digest(module, extra_modules)
    digests = {given: manifest.digest for given, manifest in inputs.items()}
    key = sha256_json({"step": name, "version": version, "code": code, "params": params, "inputs": digests})[:24]
    return _Wanted(name, version, code, params, inputs, artifacts, key, join(artifacts, name, key))


def _look(wanted: _Wanted) -> Manifest:
    """The output, where it is there."""
    found = existing(wanted.uri)
    if found is None:
        raise NotMade(wanted.uri)
    return found


def _make_or_find(record: StepRecord, wanted: _Wanted, produce: Produce) -> Manifest:
    name, uri = wanted.name, wanted.uri
    digests = {given: manifest.digest for given, manifest in wanted.inputs.items()}
    record.update(key=wanted.key, uri=uri, params=wanted.params, inputs=digests, code=wanted.code)
    found = existing(uri)
    if found is None:
        with _lock(f"{name}-{wanted.key}"):
            # Another run may have made it while this one waited for the lock.
            found = existing(uri)
            if found is None:
                manifest = _make(wanted, produce)
                record.end("done", output=_summary(manifest), peak_rss_mb=_peak_rss_mb())
                print(f"{name}: done in {record.fields['seconds']:.1f} s → {uri}", flush=True)
                return manifest
    print(f"{name}: cached at {uri}", flush=True)
    record.end("cached", output=_summary(found))
    return found


def _make(wanted: _Wanted, produce: Produce) -> Manifest:
    began = time.time()
    out = OutputFolder(wanted.uri, _work_folder(wanted.artifacts, wanted.name, wanted.key))
    context = StepContext(
        wanted.name, wanted.key, out, {given: InputFolder(m) for given, m in wanted.inputs.items()}, wanted.params
    )
    with context._exits:
        try:
            kind, metadata = produce(context)
        except BaseException:
            # The next try may be a pod on another node, with nothing of this one's disk.
            with contextlib.suppress(AtelierError):
                out.keep()
            raise
        made_by = wanted.made_by() | {
            "seconds": round(time.time() - began, 3),
            "run": context.run_id,
            "versions": _versions(),
            "commit": _commit(),
            "notes": context.facts,
        }
        return out.finish(kind, metadata, made_by)


def _summary(manifest: Manifest) -> dict[str, Any]:
    scalars = {name: value for name, value in manifest.metadata.items() if isinstance(value, int | float | str)}
    metrics = manifest.metadata.get("metrics")
    return {
        "kind": manifest.kind,
        "uri": manifest.uri,
        "digest": manifest.digest,
        "files": len(manifest.files),
        "bytes": manifest.total_bytes,
        "metadata": scalars,
        **({"metrics": metrics} if isinstance(metrics, dict) else {}),
    }


def _report(record: StepRecord, error: BaseException) -> None:
    """Writes the failure into the ledger and the log."""
    interrupted = isinstance(error, Preempted | KeyboardInterrupt)
    if isinstance(error, AtelierError):
        what, fix = error.what, error.fix
        print(f"{record.name}: {error}", file=sys.stderr, flush=True)
    else:
        what, fix = f"{type(error).__name__}: {error}", ""
        traceback.print_exception(error)
    with contextlib.suppress(OSError):
        # On a full disk the ledger cannot be written either; the log and the exit code still tell.
        record.end(
            "interrupted" if interrupted else "failed",
            peak_rss_mb=_peak_rss_mb(),
            error={"type": type(error).__name__, "what": what, "fix": fix},
        )


def _run_dir() -> Path | None:
    name = os.environ.get("ATELIER_RUN_DIR")
    return Path(name) if name else None


def _state() -> Path:
    """The folder of locks and unfinished work on this machine."""
    return Path(os.environ.get("ATELIER_PROJECT") or Path.cwd()) / ".atelier"


def _work_folder(artifacts: str, name: str, key: str) -> Path:
    """Where a step works; it survives a kill, so that the next run with the same key goes on there.

    Beside the final folder where that is local (one rename publishes it), else in the project.
    """
    if is_local(artifacts):
        return local_path(artifacts) / ".work" / f"{name}-{key}"
    return _state() / "work" / f"{name}-{key}"


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """Lets one process of this machine make an output; the kernel frees the lock when its holder dies."""
    path = _state() / "locks" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise StorageError(
            f"the lock {path} cannot be opened: {error.strerror}",
            "free space or give ATELIER_PROJECT a writable folder",
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run is making {name}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for library in ("atelier", *VERSIONED):
        with contextlib.suppress(distributions.PackageNotFoundError):
            found[library] = distributions.version(library)
    return found


def _commit() -> str:
    """The project's git commit, with "+" when the tree differs from it; "" outside a repository."""
    git = shutil.which("git")
    project = Path(os.environ.get("ATELIER_PROJECT") or Path.cwd())
    if git is None or not (project / ".git").exists():
        return os.environ.get("ATELIER_COMMIT", "")
    try:
        head = subprocess.run(
            [git, "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [git, "status", "--porcelain", "-uno"], cwd=project, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return ""
    return head + ("+" if changed else "")


def _peak_rss_mb() -> float:
    """The larger of this process's and its largest child's peak resident memory, in MB (ru_maxrss is in KiB)."""
    return round(
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024, 1
    )


def _report_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The ``sys.excepthook`` of a step's process: an error before ``run_step`` gets its line in the ledger too.

    There a step looks at its parameters and recipe; KFP's executor lets the error through, and its command names the
    component.
    """
    words = sys.argv
    named = words.index("--function_to_execute") + 1 if "--function_to_execute" in words else len(words)
    record = StepRecord(_run_dir(), words[named] if named < len(words) else "step")
    process.adopt(record.log)
    _report(record, error.with_traceback(trace))
    sys.stderr.flush()
    os._exit(error.exit_code if isinstance(error, AtelierError) else 1)


if process.is_step_process():
    sys.excepthook = _report_early
