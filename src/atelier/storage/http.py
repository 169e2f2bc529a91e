"""Reading over HTTP(S) with the standard library: ranges, bounded waits, errors that name the address.

Proxies (``https_proxy``, ``no_proxy``) and certificates (``SSL_CERT_FILE``) come from the usual variables.
"""

import http.client
import io
import urllib.error
import urllib.request
from email.message import Message
from typing import IO
from urllib.parse import urlsplit

from atelier.errors import ServiceError, StorageError
from atelier.storage.atomic import NotFound
from atelier.storage.stream import Stream

TIMEOUT_S = 20.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but gives a token only to the host that it was meant for, and remembers headers that
    only the first answer has (a hub names the sha256 there and redirects to a store)."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            if urlsplit(new.full_url).netloc != urlsplit(req.full_url).netloc:
                new.remove_header("Authorization")
            first = getattr(req, "linked", "") or headers.get("X-Linked-Etag", "")
            new.linked = first  # type: ignore[attr-defined]
            req.linked = first  # type: ignore[attr-defined]
        return new


def open_stream(url: str, start: int, headers: dict[str, str], shown: str) -> Stream:
    """Opens ``url`` from byte ``start`` on.

    Args:
        headers: added to the request (authorisation).
        shown: the address that error messages name.

    Raises:
        NotFound: 404, 410. StorageError: 401, 403 and other refusals. ServiceError: no answer, 429, 5xx.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "atelier", "Accept-Encoding": "identity", **headers})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                # Nothing after `start`: the file is complete, or the part is of another file.
                total = _total(error.headers)
                return Stream(io.BytesIO(), start if total == start else 0, total, _version(error.headers))
            raise _refusal(error, shown) from error
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(
            f"{shown}: {urlsplit(url).netloc} does not answer ({reason})",
            "check the address and the network; what was fetched is kept",
        ) from error
    except ValueError as error:
        raise StorageError(f"{shown}: not an address that can be read ({error})", "check the URL") from error
    partial = answer.status == 206
    linked = (getattr(request, "linked", "") or answer.headers.get("X-Linked-Etag", "")).strip('"')
    return Stream(
        answer,
        start if partial else 0,
        _total(answer.headers, start if partial else 0),
        _version(answer.headers),
        linked if len(linked) == 64 else "",
    )


def _total(headers: Message, start: int = 0) -> int | None:
    """The whole file's size, from ``Content-Range: bytes a-b/total`` or ``Content-Length``."""
    whole = headers.get("Content-Range", "").rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _version(headers: Message) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _refusal(error: urllib.error.HTTPError, shown: str) -> StorageError | ServiceError:
    text = f"{shown}: the server answers {error.code} {error.reason}"
    if error.code in (404, 410):
        return NotFound(text, "check the address")
    if error.code in (401, 403):
        return StorageError(text, "a private or gated source wants a token (HF_TOKEN for hf://) or accepted terms")
    if error.code == 429 or error.code >= 500:
        return ServiceError(text, "try again later; what was fetched is kept")
    return StorageError(text, "check the address")
