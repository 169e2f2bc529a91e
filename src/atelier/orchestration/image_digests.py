"""Images by digest: a tag may be another image tomorrow, and a step's cache key would not know.

A digest comes from the profile itself, from the file that ``make images`` wrote, or from the registry, asked by the
distribution specification's HTTP API (``HEAD /v2/<name>/manifests/<tag>``) with its bearer tokens. Credentials are
those of docker or podman (``auth`` entries); credential helpers are not run.
"""

import base64
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, ServiceError
from atelier.orchestration.profile import Profile, pinned

TIMEOUT_S = 8.0
ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
#: What ``urllib`` raises where no answer comes, or one that is no HTTP.
_NO_ANSWER = (OSError, http.client.HTTPException)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(
    r"(?P<name>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)(?::(?P<tag>\w[\w.-]{0,127}))?"
)


@dataclass(frozen=True)
class Reference:
    """An image reference, taken apart.

    Attributes:
        host: the registry's host and port as it is asked.
        name: the repository in it.
        tag: ``latest`` where none is given.
        shown: the reference without its tag, as it was written.
    """

    host: str
    name: str
    tag: str
    shown: str


def parse(reference: str) -> Reference:
    """Takes a reference without a digest apart, by docker's rules of what is a host.

    Raises:
        ConfigError: it is no image reference.
    """
    first, slash, rest = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, path = first, rest
    else:
        host, path = "docker.io", reference if slash else f"library/{reference}"
    match = _REFERENCE.fullmatch(path)
    if match is None or not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", host):
        raise ConfigError(f"{reference!r} is no image reference", "write registry/folder/name:tag, in lower case")
    shown = reference.removesuffix(f":{match['tag']}") if match["tag"] else reference
    asked = "registry-1.docker.io" if host == "docker.io" else host
    return Reference(asked, match["name"], match["tag"] or "latest", shown)


def pin(
    profile: Profile, targets: Iterable[str], digests: Mapping[str, str] | None = None, allow_tags: bool = False
) -> dict[str, str]:
    """The references of images by target, by digest.

    Args:
        targets: those that the pipeline needs (ops, train …).
        digests: target → digest or whole reference, as ``make images`` wrote them.
        allow_tags: leave a tag whose digest cannot be found out as it is.

    Raises:
        ConfigError: a reference that is none. ServiceError: the registry does not know the image or does not answer.
    """
    references: dict[str, str] = {}
    for target in sorted(targets):
        named = profile.images.reference(target)
        known = (digests or {}).get(target, "")
        if known and not _DIGEST.fullmatch(known):
            if not pinned(known):
                raise ConfigError(f"the digest of image {target} is {known!r}", "sha256:<64 hex> or name@sha256:…")
            references[target] = known
        elif pinned(named):
            references[target] = named
        elif known:
            references[target] = f"{parse(named).shown}@{known}"
        elif not profile.images.registry and target not in profile.images.references:
            if not allow_tags:
                raise ConfigError(
                    f"the profile {profile.name} names no registry for the image {target}",
                    "set images.registry; for images that were loaded into the nodes: --allow-tags",
                )
            references[target] = named
        else:
            references[target] = _ask(named, allow_tags)
    return references


def _ask(named: str, allow_tags: bool) -> str:
    try:
        return f"{parse(named).shown}@{resolve(named)}"
    except ServiceError:
        if allow_tags:
            return named
        raise


def read_digests(path: Path) -> dict[str, str]:
    """The file that ``make images`` writes: a JSON object, target → digest or whole reference.

    Raises:
        ConfigError: it cannot be read or is no such object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the image digests {path} cannot be read: {error}", "`make images` writes it") from None
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        raise ConfigError(f"the image digests {path} are no object of texts", "`make images` writes it")
    return record


def resolve(reference: str) -> str:
    """The digest that a tag has now, as the registry says.

    Raises:
        ConfigError: it is no reference. ServiceError: no such image, no permission, no answer.
    """
    where = parse(reference)
    url = f"{_scheme(where.host)}://{where.host}/v2/{where.name}/manifests/{where.tag}"
    headers = {"Accept": ACCEPT}
    try:
        answer = _head(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise _refusal(error, reference) from None
        authorization = _authorization(error.headers, where, reference)
        try:
            answer = _head(url, headers | {"Authorization": authorization})
        except urllib.error.HTTPError as again:
            raise _refusal(again, reference) from None
        except _NO_ANSWER as again:
            raise _silent(again, where) from None
    except _NO_ANSWER as error:
        raise _silent(error, where) from None
    digest = answer.get("Docker-Content-Digest", "")
    if not _DIGEST.fullmatch(digest):
        raise ServiceError(
            f"the registry {where.host} names no digest for {reference}", "give the image as name@sha256:…"
        )
    return digest


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A registry that redirects a manifest sends a login page, or a credential would travel to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _head(url: str, headers: dict[str, str]) -> Message:
    request = urllib.request.Request(url, headers=headers, method="HEAD")
    with _OPENER.open(request, timeout=TIMEOUT_S) as response:
        found: Message = response.headers
        return found


def _authorization(headers: Message, where: Reference, reference: str) -> str:
    """What the challenge of a 401 asks for: a bearer token, or the credentials themselves."""
    challenge = headers.get("WWW-Authenticate", "")
    kind, _, rest = challenge.partition(" ")
    basic = credentials(where.host)
    if kind.lower() == "basic" and basic:
        return f"Basic {basic}"
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = fields.get("realm", "")
    if kind.lower() != "bearer" or not realm.startswith(("https://", f"{_scheme(where.host)}://")):
        raise ServiceError(
            f"the registry {where.host} wants a login for {reference}",
            f"`docker login {where.host}` (or podman's), or give the image as name@sha256:…",
        )
    query = {"service": fields.get("service", ""), "scope": fields.get("scope", f"repository:{where.name}:pull")}
    request = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(query)}")
    if basic:
        request.add_header("Authorization", f"Basic {basic}")
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as response:
            record = json.loads(response.read(1_000_000))
    except urllib.error.HTTPError as error:
        raise _refusal(error, reference) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _silent(error, where) from None
    token = record.get("token") or record.get("access_token") if isinstance(record, dict) else None
    if not isinstance(token, str):
        raise ServiceError(f"the registry {where.host} gives no token", "give the image as name@sha256:…")
    return f"Bearer {token}"


def credentials(host: str) -> str:
    """The base64 ``user:password`` that docker or podman keeps for a registry; "" without one."""
    names = [
        Path(os.environ["REGISTRY_AUTH_FILE"]) if os.environ.get("REGISTRY_AUTH_FILE") else None,
        Path(os.environ.get("XDG_RUNTIME_DIR", "/run/containers/0")) / "containers" / "auth.json",
        Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json",
    ]
    hosts = {host, f"https://{host}", f"https://{host}/v2/", f"https://{host}/v1/"}
    if host == "registry-1.docker.io":
        hosts |= {"docker.io", "https://index.docker.io/v1/", "index.docker.io"}
    for path in names:
        try:
            record = json.loads(path.read_text(encoding="utf-8")) if path else {}
            for name, entry in (record.get("auths") or {}).items():
                if name in hosts and isinstance(entry.get("auth"), str):
                    base64.b64decode(entry["auth"], validate=True)
                    return str(entry["auth"])
        except (OSError, ValueError, AttributeError):
            continue
    return ""


def _scheme(host: str) -> str:
    """As docker does: plain HTTP for this machine alone."""
    name = host.partition(":")[0]
    return "http" if name == "localhost" or name.startswith("127.") else "https"


def _refusal(error: urllib.error.HTTPError, reference: str) -> ServiceError:
    if error.code in (401, 403):
        return ServiceError(
            f"the registry refuses {reference} (HTTP {error.code})",
            "log in with docker or podman as someone who may pull it, or give the image as name@sha256:…",
        )
    if error.code == 404:
        return ServiceError(
            f"there is no image {reference}", "`make images` builds it; push it, or correct the profile"
        )
    return ServiceError(
        f"the registry answers {reference} with HTTP {error.code}", "try again, or give the image as name@sha256:…"
    )


def _silent(error: Exception, where: Reference) -> ServiceError:
    reason = getattr(error, "reason", error)
    return ServiceError(
        f"the registry {where.host} does not answer: {reason}",
        "correct images.registry in the profile, give the images as name@sha256:… or --image-digests FILE",
    )
