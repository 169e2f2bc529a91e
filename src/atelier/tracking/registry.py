"""The model registry: versions by URI, aliases, and a promotion history that only grows.

Weights never pass through MLflow: a version's source is the artifact store's URI, whose manifest is looked at first,
since MLflow takes any URI. Aliases are lower case (MLflow would keep ``champion`` and ``Champion`` side by side). The
history answers "which version was champion when": one tag ``atelier.promotion.000001`` each on the registered model.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, DataError, ServiceError
from atelier.tracking.runs import _service_errors
from atelier.tracking.service import client, shown, tracking_uri

CHALLENGER, CHAMPION = "challenger", "champion"
_HISTORY = "atelier.promotion."
_OF_EVALUATION = ("atelier.evaluation", "atelier.bars")
"""Tags that change with a version's evaluation."""
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_RESERVED = re.compile(r"latest|v\d+")


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    source: str
    digest: str
    aliases: tuple[str, ...]
    new: bool

    @property
    def uri(self) -> str:
        """MLflow's address of it."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Promotion:
    """One move of an alias."""

    alias: str
    version: str
    previous: str | None
    at: str
    why: str


def register(
    name: str,
    source_uri: str,
    run_id: str | None,
    metrics: dict[str, float],
    tags: dict[str, Any],
    *,
    passed: bool,
    uri: str | None = None,
) -> Registered:
    """Registers a model that lies in the artifact store; the same content a second time is found, not added.

    A later evaluation of known content is noted with its version: what it measured, whether it passed which bars, and
    its digest.
    Figures that it did not measure stay, since they are of the same weights.

    It becomes ``challenger``; the first version that passed its evaluation becomes ``champion`` too. Later champions
    are made by promotion alone.

    Args:
        name: of the registered model (lower case letters, digits, ``_``, ``-``, ``.``).
        source_uri: a complete folder with a manifest.
        run_id: the MLflow run that made it, or None.
        metrics: what the evaluation measured; kept with the version and with MLflow's LoggedModel.
        passed: whether the evaluation's bar was reached.

    Raises:
        DataError: there is no complete folder at ``source_uri``.
        ServiceError: MLflow does not answer.
    """
    from atelier.storage.folder import existing

    name = checked_name(name)
    manifest = existing(source_uri)
    if manifest is None:
        raise DataError(
            f"{source_uri} holds no complete model: its manifest or a file that it names is missing",
            "run the pipeline again: the step that makes it runs, the others are cached",
        )
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    uri = uri or tracking_uri()
    with _service_errors(uri), _one_at_a_time(uri, name):
        connected = client(uri)
        _ensure_model(connected, name)
        judged = {
            **{key: str(value) for key, value in tags.items() if key in _OF_EVALUATION},
            "atelier.passed": str(passed).lower(),
            **{f"metric.{key}": f"{value:.6g}" for key, value in finite.items()},
        }
        known = connected.search_model_versions(f"name = '{name}' and tags.`atelier.digest` = '{manifest.digest}'")
        if known:
            latest = max(known, key=lambda found: int(found.version))
            version, new = str(latest.version), False
            _note(connected, name, version, judged, finite)
        else:
            details = {
                **{key: str(value) for key, value in tags.items()},
                "atelier.digest": manifest.digest,
                "atelier.kind": manifest.kind,
                **judged,
            }
            model_id = _log_model(connected, name, run_id, details, finite)
            made = connected.create_model_version(
                name, source=source_uri, run_id=run_id or None, tags=details, model_id=model_id
            )
            version, new = str(made.version), True
        if new or _version_of(connected, name, CHALLENGER) is None:
            _move(connected, name, CHALLENGER, version, "registered")
        if passed and _version_of(connected, name, CHAMPION) is None:
            _move(connected, name, CHAMPION, version, "the first version that passed its evaluation")
        aliases = tuple(
            sorted(alias for alias in (CHALLENGER, CHAMPION) if _version_of(connected, name, alias) == version)
        )
    return Registered(name, version, source_uri, manifest.digest, aliases, new)


def version_by_alias(name: str, alias: str, uri: str | None = None) -> str | None:
    """The version that an alias stands for, None without one.

    Raises:
        ServiceError: MLflow does not answer.
    """
    uri = uri or tracking_uri()
    with _service_errors(uri):
        return _version_of(client(uri), checked_name(name), checked_alias(alias))


def find(address: str, uri: str | None = None) -> Registered | None:
    """The version that ``models:/name/version`` or ``models:/name@alias`` stands for; None without one.

    Raises:
        ConfigError: an address of another form. ServiceError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address!r} is no address of a model", "write models:/name@alias or models:/name/version")
    name, uri = checked_name(match["name"]), uri or tracking_uri()
    with _service_errors(uri):
        connected = client(uri)
        version = match["version"] or _version_of(connected, name, checked_alias(match["alias"]))
        if version is None:
            return None
        try:
            found = connected.get_model_version(name, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return Registered(
        name, str(version), found.source, found.tags.get("atelier.digest", ""), tuple(sorted(found.aliases)), False
    )


def history(name: str, uri: str | None = None) -> list[Promotion]:
    """Every move of an alias of this model, oldest first.

    Raises:
        ServiceError: MLflow does not answer, or there is no such model.
    """
    uri = uri or tracking_uri()
    with _service_errors(uri):
        return _history(client(uri), checked_name(name))


def identity(uri: str | None = None) -> str:
    """Names this very registry: a store that was removed and made again at the same place is another one.

    Raises:
        ServiceError: MLflow does not answer.
    """
    uri = uri or tracking_uri()
    with _service_errors(uri):
        born = client(uri).get_experiment("0").creation_time
    return f"{shown(uri)}#{born}"


def checked_name(name: str) -> str:
    """A registered model's name in the one spelling that we use.

    Raises:
        ConfigError: it holds other characters.
    """
    lower = name.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", lower):
        raise ConfigError(f"{name!r} is no name for a registered model", "use letters, digits, _, - and .")
    return lower


def checked_alias(alias: str) -> str:
    """An alias in lower case.

    Raises:
        ConfigError: MLflow reserves it, or it holds other characters.
    """
    lower = alias.strip().lower()
    if _RESERVED.fullmatch(lower) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", lower):
        raise ConfigError(
            f"{alias!r} cannot be an alias: MLflow reserves it or does not take it",
            "use a word such as champion or challenger",
        )
    return lower


def _ensure_model(connected: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        connected.create_registered_model(name, tags={"atelier.made": "true"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(
    connected: Any, name: str, run_id: str | None, details: dict[str, str], metrics: dict[str, float]
) -> str | None:
    """MLflow's LoggedModel of the run, so that models can be searched by metric; None where a run is missing."""
    if not run_id:
        return None
    experiment = connected.get_run(run_id).info.experiment_id
    model = connected.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags=details, model_type="diffusers"
    )
    for key, value in metrics.items():
        connected.log_metric(run_id, key, value, model_id=model.model_id)
    connected.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _note(connected: Any, name: str, version: str, judged: dict[str, str], metrics: dict[str, float]) -> None:
    """Brings a version's tags, and its run's LoggedModel where it has one, up to a later evaluation."""
    found = connected.get_model_version(name, version)
    changed = {key: value for key, value in judged.items() if found.tags.get(key) != value}
    for key, value in changed.items():
        connected.set_model_version_tag(name, version, key, value)
    if not changed or not found.run_id:
        return
    # MLflow on SQL keeps no address of the LoggedModel with the version.
    logged = connected.search_logged_models(
        [connected.get_run(found.run_id).info.experiment_id],
        filter_string=f"name = '{name}' AND tags.`atelier.digest` = '{found.tags['atelier.digest']}'",
    )
    for each in (one for one in logged if one.source_run_id == found.run_id):
        connected.set_logged_model_tags(each.model_id, changed)
        for key, number in metrics.items():
            if f"metric.{key}" in changed:
                connected.log_metric(found.run_id, key, number, model_id=each.model_id)


def _version_of(connected: Any, name: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(connected.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _move(connected: Any, name: str, alias: str, version: str, why: str) -> None:
    """Sets an alias, reads it back (the last writer wins in MLflow) and adds the move to the history."""
    alias = checked_alias(alias)
    previous = _version_of(connected, name, alias)
    connected.set_registered_model_alias(name, alias, version)
    if _version_of(connected, name, alias) != version:
        raise ServiceError(f"alias {alias} of {name} was moved by someone else at the same time", "try again")
    moves = _history(connected, name)
    entry = {
        "alias": alias,
        "version": version,
        "previous": previous,
        "why": why,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    connected.set_registered_model_tag(name, f"{_HISTORY}{len(moves) + 1:06d}", json.dumps(entry))


def _history(connected: Any, name: str) -> list[Promotion]:
    tags = connected.get_registered_model(name).tags
    return [Promotion(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_HISTORY)]


@contextlib.contextmanager
def _one_at_a_time(uri: str, name: str) -> Iterator[None]:
    """One process of this machine at a time changes a model's aliases: MLflow has no compare-and-set."""
    mark = hashlib.sha256(f"{uri}\n{name}".encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"atelier-registry-{mark}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
