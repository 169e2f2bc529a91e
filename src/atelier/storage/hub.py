"""``hf://`` places: ``hf://org/repo[@rev]/file``, ``hf://datasets/org/repo[@rev]/file``.

Bytes come through our own resumable transfer; huggingface_hub knows addresses (``HF_ENDPOINT``), tokens
(``HF_TOKEN`` or a stored login) and listings.
"""

import contextlib
import fnmatch
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from atelier.errors import ConfigError, ServiceError, StorageError
from atelier.storage.atomic import NotFound


class HubPlace(NamedTuple):
    """``kind`` is "model", "dataset" or "space"; ``file`` may hold a pattern."""

    kind: str
    repo: str
    revision: str
    file: str


def parse(uri: str) -> HubPlace:
    """Splits an ``hf://`` URI.

    Raises:
        ConfigError: it names no repository or no file.
    """
    parts = uri.removeprefix("hf://").split("/")
    kinds = {"datasets": "dataset", "spaces": "space", "models": "model"}
    kind = kinds[parts.pop(0)] if parts[0] in kinds else "model"
    if len(parts) < 3 or not all(parts[:2]) or not parts[2]:
        raise ConfigError(f"{uri}: names no file of a repository", "write hf://[datasets/]org/repo[@revision]/file")
    name, _, revision = parts[1].partition("@")
    return HubPlace(kind, f"{parts[0]}/{name}", unquote(revision) or "main", "/".join(parts[2:]))


def resolve(uri: str) -> tuple[str, dict[str, str]]:
    """The HTTP address of a file and the headers (with the token, if there is one) to read it."""
    from huggingface_hub import get_token, hf_hub_url

    place = parse(uri)
    address = hf_hub_url(place.repo, place.file, repo_type=place.kind, revision=place.revision, endpoint=_endpoint())
    token = get_token()
    return address, {"Authorization": f"Bearer {token}"} if token else {}


def listing(pattern: str) -> list[str]:
    """The files of a repository that fit, sorted, as ``hf://`` URIs.

    Raises:
        NotFound: no such repository or revision. StorageError: refused. ServiceError: the hub does not answer.
    """
    from huggingface_hub import HfApi

    place = parse(pattern)
    with _hub_errors(pattern):
        names = HfApi(endpoint=_endpoint()).list_repo_files(place.repo, repo_type=place.kind, revision=place.revision)
    depth = place.file.count("/")
    base = pattern[: len(pattern) - len(place.file)]
    return sorted(base + name for name in names if name.count("/") == depth and fnmatch.fnmatchcase(name, place.file))


def commit(repo: str, revision: str = "") -> str:
    """The commit that a revision of a model repository ("": the newest) stands for; a commit stands for itself.

    Raises:
        NotFound: no such repository or revision. StorageError: refused. ServiceError: the hub does not answer.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        return str(HfApi(endpoint=_endpoint()).model_info(repo, revision=revision or None).sha)


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFound(
            f"{what}: no such repository or revision, or it is private ({error})",
            "check the name; set HF_TOKEN for a private one",
        ) from error
    except HfHubHTTPError as error:
        raise StorageError(f"{what}: the hub refuses ({error})", "check HF_TOKEN and accepted terms") from error
    except Exception as error:
        # The hub client's transport raises its own family (httpx or requests, by version).
        raise ServiceError(
            f"{what}: {_endpoint() or 'the hub'} does not answer ({type(error).__name__}: {error})",
            "check HF_ENDPOINT and the network",
        ) from error


def _endpoint() -> str | None:
    """``HF_ENDPOINT`` now, not as it was when huggingface_hub was imported."""
    import os

    return os.environ.get("HF_ENDPOINT") or None
