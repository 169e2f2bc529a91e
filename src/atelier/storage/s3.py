"""S3 and servers that speak its protocol, through boto3: bounded waits, retries, errors that name the place.

Credentials, region and endpoint come from the usual variables (AWS_ACCESS_KEY_ID, …, AWS_ENDPOINT_URL_S3,
AWS_ENDPOINT_URL) or profiles; only the wait for an answer is ours: ATELIER_S3_TIMEOUT_S (60).
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, ConfigError, ServiceError, StorageError
from atelier.storage import multipart
from atelier.storage.atomic import NotFound, os_errors
from atelier.storage.socket_body import SocketBody
from atelier.storage.stream import Stream

ATTEMPTS = 6
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "AccountProblem"}
_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "InvalidClientTokenId",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
}
_clients: dict[tuple[Any, ...], Any] = {}
_lock = threading.Lock()


def split(uri: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` → ``("bucket", "a/b")``.

    Raises:
        ConfigError: no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError(f"{uri}: no bucket", "write s3://bucket/prefix")
    return bucket, key.strip("/")


def endpoint() -> str | None:
    """The configured endpoint; None means AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _options(quick: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": 3 if quick else 5,
        "read_timeout": 5 if quick else float(os.environ.get("ATELIER_S3_TIMEOUT_S") or 60),
        "retries": {"total_max_attempts": 1 if quick else ATTEMPTS, "mode": "standard"},
        # Servers other than AWS often do not know the newer streaming checksum trailers and store them as
        # content; our own sha256 of every file covers what they would protect.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if endpoint():
        options["s3"] = {"addressing_style": "path"}
    return options


def client(quick: bool = False) -> Any:
    """A boto3 client, one per process and configuration (threads share it).

    Args:
        quick: one attempt and short waits, for checks before anything starts.
    """
    import boto3
    from botocore.config import Config

    # The process id: a client must not be shared over a fork. The variables: tests change them.
    variables = sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "ATELIER_S3_")))
    key = (os.getpid(), quick, *variables)
    with _lock:
        if key not in _clients:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            if not region and endpoint():
                region = "us-east-1"  # other servers do not care, boto3 wants one
            _clients[key] = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint(),
                region_name=region,
                config=Config(max_pool_connections=32, **_options(quick)),
            )
        return _clients[key]


def fsspec_filesystem() -> Any:
    """An s3fs file system with the same endpoint, waits and retries."""
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=endpoint(), config_kwargs=_options(quick=False), use_listings_cache=False)


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turns boto3's errors of the block into ours; the text names endpoint, bucket and key."""
    import botocore.exceptions as boto
    from boto3.exceptions import Boto3Error

    where = f"{uri} at {endpoint() or 'AWS S3'}"
    try:
        yield
    except AtelierError:
        raise
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
        raise ServiceError(
            f"{where}: no usable credentials ({error})", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except boto.ClientError as error:
        raise _client_error(error, where, uri) from error
    except (boto.HTTPClientError, boto.EndpointConnectionError, boto.ConnectionError) as error:
        raise ServiceError(
            f"{where}: the server does not answer ({error})", "check AWS_ENDPOINT_URL and that the server runs"
        ) from error
    except (boto.BotoCoreError, Boto3Error, ValueError) as error:
        what = f"{where}: {type(error).__name__}: {error}"
        raise StorageError(what, "check the URI and the AWS_* variables") from error


def _client_error(error: Any, where: str, uri: str) -> AtelierError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    text = f"{where}: {code} {error.response.get('Error', {}).get('Message', '')}".rstrip()
    if code == "NoSuchBucket":
        return StorageError(f"{where}: no bucket {split(uri)[0]!r}", "create the bucket or correct its name")
    if code in {"404", "NoSuchKey", "NotFound"}:
        return NotFound(f"{where}: no such object", "check the URI")
    if code in _CREDENTIALS:
        return ServiceError(
            f"{text} (the server refuses the credentials)",
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        )
    if code in _DENIED or status in (401, 403):
        return StorageError(
            f"{text} (credentials are refused or lack permission)",
            "check the credentials and the bucket's policy: list, get, put and delete are needed",
        )
    if status >= 500 or code in {"SlowDown", "Throttling"}:
        return ServiceError(f"{text} (the server failed)", "try again; what was done is kept")
    return StorageError(text, "check the URI and the server's log")


def read_bytes(uri: str) -> bytes:
    """A small object's content.

    Raises:
        NotFound: there is no such object.
    """
    import botocore.exceptions as boto

    bucket, key = split(uri)
    with errors(uri):
        for attempt in range(ATTEMPTS):
            try:
                return client().get_object(Bucket=bucket, Key=key)["Body"].read()  # type: ignore[no-any-return]
            except (boto.IncompleteReadError, boto.ResponseStreamingError, boto.ReadTimeoutError):
                # Broken off inside the answer, where boto3 itself does not try again.
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("not reached")


def write_bytes(uri: str, data: bytes) -> None:
    """Puts a small object in one request: it appears whole or not at all."""
    bucket, key = split(uri)
    with errors(uri):
        client().put_object(Bucket=bucket, Key=key, Body=data)


def upload(path: Path, uri: str) -> None:
    """Puts a file; a large one in parts, of which those that an earlier try brought over are not sent again.

    The object appears whole or not at all.
    """
    bucket, key = split(uri)
    with os_errors(path), errors(uri):
        multipart.upload(client(), path, bucket, key)


def size(uri: str) -> int | None:
    """An object's size in bytes; None when there is none."""
    import botocore.exceptions as boto

    bucket, key = split(uri)
    with errors(uri):
        try:
            return _length(uri, lambda: client().head_object(Bucket=bucket, Key=key))[1]
        except boto.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise


def age(uri: str) -> float | None:
    """Seconds since an object was written, by the server's own clock; None when there is none."""
    import botocore.exceptions as boto

    bucket, key = split(uri)
    with errors(uri):
        try:
            answer = client().head_object(Bucket=bucket, Key=key)
        except boto.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())


def _length(uri: str, ask: Callable[[], Any]) -> tuple[Any, int]:
    """An answer and its Content-Length, asked for again when the head of the answer was cut off before it."""
    for _ in range(ATTEMPTS):
        answer = ask()
        if "ContentLength" in answer:
            return answer, int(answer["ContentLength"])
    raise ServiceError(f"{uri} at {endpoint() or 'AWS S3'}: answers do not say their length", "check the server")


def sizes(prefix_uri: str, quick: bool = False) -> dict[str, int]:
    """Every object under a prefix: key relative to the prefix → bytes."""
    return {name: int(item["Size"]) for name, item in _listed(prefix_uri, quick=quick)}


def versions(prefix_uri: str, deep: bool = False) -> dict[str, tuple[int, str]]:
    """The objects directly under a prefix (``deep``: all of them): key relative to it → (bytes, ETag)."""
    return {
        name: (int(item["Size"]), str(item.get("ETag", "")).strip('"')) for name, item in _listed(prefix_uri, deep=deep)
    }


def _listed(prefix_uri: str, quick: bool = False, deep: bool = True) -> Iterator[tuple[str, Any]]:
    """(key relative to the prefix, what the server says of it)."""
    flat = {} if deep else {"Delimiter": "/"}
    bucket, prefix = split(prefix_uri)
    prefix = f"{prefix}/" if prefix else ""
    with errors(prefix_uri):
        for page in client(quick).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **flat):
            for item in page.get("Contents", []):
                yield item["Key"][len(prefix) :], item


def check_writable(uri: str) -> None:
    """Puts, lists, gets and deletes a small object under ``uri``, with one attempt and short waits each."""
    bucket, prefix = split(uri)
    key = "/".join(part for part in (prefix, f".write-check-{uuid.uuid4().hex[:12]}") if part)
    quick = client(quick=True)
    with errors(uri):
        quick.put_object(Bucket=bucket, Key=key, Body=b"atelier")
        quick.list_objects_v2(Bucket=bucket, Prefix=key)
        quick.get_object(Bucket=bucket, Key=key)["Body"].read()
        quick.delete_object(Bucket=bucket, Key=key)


def delete(uri: str) -> None:
    """Deletes one object; silent when it is gone."""
    bucket, key = split(uri)
    with errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def delete_prefix(uri: str, first: str = "") -> None:
    """Deletes every object under a prefix, the object named ``first`` before all others."""
    bucket, prefix = split(uri)
    if not prefix:
        raise StorageError(f"{uri}: will not delete a whole bucket", "name a prefix")
    names = sorted(sizes(uri), key=lambda name: (name != first, name))
    with errors(uri):
        for name in names:  # one by one: batch deletion needs Content-MD5, which servers treat differently
            client().delete_object(Bucket=bucket, Key=f"{prefix}/{name}")


def abort_uploads(uri: str) -> None:
    """Gives up every unfinished upload in parts under a prefix; their parts are invisible, and paid for."""
    bucket, prefix = split(uri)
    if not prefix:
        raise StorageError(f"{uri}: will not give up a whole bucket's uploads", "name a prefix")
    with errors(uri):
        multipart.abort_all(client(), bucket, f"{prefix}/")


def open_stream(uri: str, start: int) -> Stream:
    """An object's bytes from ``start`` on."""
    import botocore.exceptions as boto

    bucket, key = split(uri)
    with errors(uri):
        try:
            wish = {"Range": f"bytes={start}-"} if start else {}
            answer, length = _length(uri, lambda: client().get_object(Bucket=bucket, Key=key, **wish))
        except boto.ClientError as error:
            if start and error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
                # Nothing after `start`: the object is complete already, or another one. Read it anew.
                answer, length = _length(uri, lambda: client().get_object(Bucket=bucket, Key=key))
                start = 0
            else:
                raise
    total = start + length
    return Stream(SocketBody(answer["Body"]), start, total, str(answer.get("ETag", "")))
