import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.errors import ConfigError, ServiceError, StorageError
from atelier.storage import s3, uri
from atelier.storage.atomic import NotFound
from atelier.storage.folder import existing
from tests.servers import S3Server, free_port


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_local_forms(tmp_path: Path) -> None:
    assert uri.local_path("file:///a%20b/c") == Path("/a b/c")
    assert uri.local_path("rel/x") == Path("rel/x")
    assert uri.is_local("/x")
    assert not uri.is_local("s3://b/x")
    assert uri.join("s3://b/x/", "y", "/z") == "s3://b/x/y/z"
    uri.check_writable(str(tmp_path / "new" / "folder"))
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    for bad in ("ftp://x/y", "file://host/x"):
        with pytest.raises(ConfigError):
            uri.local_path(bad)
    with pytest.raises(ConfigError, match="cannot be written"):
        uri.check_writable("https://example.org/x")


def test_s3_writable_and_readable_by_fsspec(s3_bucket: str) -> None:
    uri.check_writable(s3_bucket)
    assert s3.sizes(s3_bucket) == {}
    s3.write_bytes(s3_bucket + "/a/b", b"hello")
    filesystem, path = uri.filesystem(s3_bucket + "/a/b")
    assert filesystem.cat_file(path) == b"hello"
    assert uri.read_text(s3_bucket + "/a/b") == "hello"
    assert s3.sizes(s3_bucket) == {"a/b": 5}
    with pytest.raises(NotFound, match="a/c"):
        uri.read_bytes(s3_bucket + "/a/c")


def test_s3_no_such_bucket(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match=r"no bucket 'nowhere-at-all'") as caught:
        uri.check_writable("s3://nowhere-at-all/x")
    assert "127.0.0.1" in caught.value.what


def test_s3_wrong_credentials(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if s3_server.name == "moto":
        pytest.skip("moto takes any credentials")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    for refused in (uri.check_writable, existing, uri.read_bytes):
        began = time.monotonic()
        with pytest.raises(ServiceError, match="refuses the credentials"):
            refused(s3_bucket)
        assert time.monotonic() - began < 30


def test_dead_endpoint_is_named_at_once(endpoint: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    endpoint.setenv("AWS_ENDPOINT_URL", address)
    began = time.monotonic()
    with pytest.raises(ServiceError, match=address):
        uri.check_writable("s3://bucket/x")
    assert time.monotonic() - began < 30


def test_silent_endpoint_is_named_in_time(endpoint: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        # The special variable for S3 wins over the general one.
        endpoint.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        endpoint.setenv("AWS_ENDPOINT_URL_S3", address)
        began = time.monotonic()
        with pytest.raises(ServiceError, match=address):
            uri.check_writable("s3://bucket/x")
        assert time.monotonic() - began < 30


def test_no_credentials(endpoint: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint.delenv("AWS_ACCESS_KEY_ID")
    endpoint.delenv("AWS_SECRET_ACCESS_KEY")
    endpoint.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    endpoint.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    endpoint.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match="no usable credentials"):
        uri.check_writable("s3://bucket/x")
