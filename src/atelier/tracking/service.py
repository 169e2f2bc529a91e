"""The MLflow service of a run: which URI, whether it answers, and a client for it.

MLflow is imported inside functions: it takes two seconds, and most commands never touch it.
"""

import contextlib
import fcntl
import os
import re
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atelier.errors import ServiceError

DEADLINE_S = 9.0
"""``ping`` answers within this, whatever the network does."""

# MLflow's own defaults (120 s a request, 7 retries with back-off) keep a run waiting four minutes for a dead server.
_REQUEST_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


def default_uri(project: Path) -> str:
    """The store of a project that names none: SQLite in its folder (pictures lie in ``mlartifacts/`` beside it)."""
    return f"sqlite:///{project.absolute()}/mlflow.db"


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, else the default of ``ATELIER_PROJECT`` or of the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(Path(os.environ.get("ATELIER_PROJECT") or "."))


def client(uri: str | None = None) -> Any:
    """An ``MlflowClient`` of this store; makes its tables at the first use (a few seconds for SQLite).

    Raises:
        ServiceError: the store cannot be opened.
    """
    for name, value in _REQUEST_LIMITS.items():
        os.environ.setdefault(name, value)
    uri = uri or tracking_uri()
    _quiet_migrations()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with _first_use(uri):
        try:
            made = MlflowClient(tracking_uri=uri, registry_uri=uri)
            if not _is_http(uri):
                made.search_experiments(max_results=1)  # opens the database, which makes or upgrades its tables
            return made
        except (MlflowException, OSError) as error:
            raise ServiceError(
                f"MLflow at {shown(uri)} cannot be opened: {_first_line(error)}", "check MLFLOW_TRACKING_URI"
            ) from error


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where an experiment keeps its pictures: beside a SQLite file, else in the project; None lets a server say."""
    if _is_http(uri):
        return None
    database = _sqlite_path(uri)
    root = database.parent if database else Path(os.environ.get("ATELIER_PROJECT") or ".").absolute()
    return (root / "mlartifacts" / re.sub(r"[^\w.-]", "_", experiment)).as_uri()


def ping(uri: str | None = None) -> None:
    """Sees that the store answers.

    Raises:
        ServiceError: it does not answer within ten seconds, refuses us, or cannot be written; the message names it.
    """
    uri = uri or tracking_uri()
    outcome: list[ServiceError | None] = []

    def look() -> None:
        try:
            _look(uri)
            outcome.append(None)
        except ServiceError as error:
            outcome.append(error)
        except Exception as error:
            outcome.append(ServiceError(f"MLflow at {shown(uri)} does not answer: {_first_line(error)}", _FIX))

    # A thread, because name resolution and database drivers take no deadline.
    thread = threading.Thread(target=look, name="mlflow-ping", daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if not outcome:
        raise ServiceError(f"MLflow at {shown(uri)} did not answer within {DEADLINE_S:.0f} s", _FIX)
    if outcome[0] is not None:
        raise outcome[0]


_FIX = "start the server, correct MLFLOW_TRACKING_URI, or unset it to use SQLite in the project's folder"


def _look(uri: str) -> None:
    scheme = uri.split(":", 1)[0].lower()
    if _is_http(uri):
        _look_at_server(uri)
    elif (database := _sqlite_path(uri)) is not None:
        _look_at_sqlite(uri, database)
    elif re.match(r"^(postgresql|mysql|mssql)(\+\w+)?$", scheme):
        import sqlalchemy

        try:
            engine = sqlalchemy.create_engine(uri)
            with engine.connect():
                pass
            engine.dispose()
        except Exception as error:
            raise ServiceError(f"MLflow's database {shown(uri)} does not answer: {_first_line(error)}", _FIX) from error
    elif scheme not in ("databricks", "uc"):
        raise ServiceError(
            f"MLFLOW_TRACKING_URI {shown(uri)} is none that runs are kept in",
            "give http(s)://host:port, sqlite:///path.db or postgresql://…",
        )


def _look_at_server(uri: str) -> None:
    base = uri.rstrip("/")
    headers = {}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user and password:
        headers["Authorization"] = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(f"{base}/api/2.0/mlflow/experiments/search?max_results=1", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S - 1) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        detail = error.read(200).decode(errors="replace").strip()
        fix = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            if error.code == 401
            else _FIX
        )
        raise ServiceError(f"MLflow at {shown(uri)} refuses: HTTP {error.code} {detail}".rstrip(), fix) from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(f"MLflow at {shown(uri)} does not answer: {reason}", _FIX) from error


def _look_at_sqlite(uri: str, database: Path) -> None:
    import sqlite3

    folder = database.parent
    if not database.exists():
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ServiceError(
                f"MLflow's {database} cannot be made: {folder} is no folder that can be written",
                "make it, or set MLFLOW_TRACKING_URI",
            )
        return
    if not os.access(database, os.W_OK):
        raise ServiceError(f"MLflow's {database} cannot be written", "change its permissions or MLFLOW_TRACKING_URI")
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=DEADLINE_S - 2)) as connection:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        raise ServiceError(
            f"MLflow's {database} is no usable SQLite database: {error}",
            "move it away (a new one is made), or set MLFLOW_TRACKING_URI",
        ) from error


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Lets one process at a time make or upgrade a SQLite store's tables."""
    database = _sqlite_path(uri)
    if database is None:
        yield
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        handle = database.with_name(f".{database.name}.lock").open("a")
    except OSError as error:
        raise ServiceError(
            f"MLflow's {database} cannot be made: {error.strerror}",
            "check the folder's permissions, or set MLFLOW_TRACKING_URI",
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _quiet_migrations() -> None:
    """Alembic tells of some fifty migrations when it makes a store; nobody asked."""
    import logging

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")


def shown(uri: str) -> str:
    """The URI without a password."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":…@") if parts.password else uri


def _is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _sqlite_path(uri: str) -> Path | None:
    match = re.match(r"^sqlite(?:\+\w+)?:///(.*)$", uri)
    return Path(match.group(1)).absolute() if match and match.group(1) not in ("", ":memory:") else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
