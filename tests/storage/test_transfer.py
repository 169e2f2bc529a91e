import hashlib
import os
import threading
from pathlib import Path

import pytest

from atelier.errors import ConfigError, DataError, ServiceError, StorageError
from atelier.storage import s3, transfer
from atelier.storage.atomic import NotFound
from atelier.storage.remote_file import opened
from atelier.storage.transfer import download, expand, file_name
from tests.servers import WebServer, free_port, serving

Web = tuple[WebServer, Path]
DATA = os.urandom(3 * 2**20 + 17)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)


def test_http_resumes_where_the_connection_broke(web: Web, tmp_path: Path) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    state.drops = 3
    assert download(f"{state.url}/x.bin", tmp_path / "out" / "x", SHA).read_bytes() == DATA
    ranges = [wish for _, wish, _ in state.requests]
    assert ranges[0] == ""
    starts = [int(wish.removeprefix("bytes=").rstrip("-")) for wish in ranges[1:]]
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x"]


def test_a_file_that_is_read_in_place_goes_on_after_breaks(web: Web) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    state.drops = 3
    with opened(f"{state.url}/x.bin") as file:
        assert file.read(1000) == DATA[:1000]
        assert file.read() == DATA[1000:]
        assert file.read() == b""
    assert state.drops == 0
    state.drops, state.ranges = 1, False
    with pytest.raises(StorageError, match="cannot be read on at byte"), opened(f"{state.url}/x.bin") as file:
        file.read()
    with pytest.raises(NotFound), opened(f"{state.url}/y.bin") as file:
        file.read(1)


def test_http_goes_on_with_an_earlier_calls_part(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    state.drops = 1
    with pytest.raises(ServiceError, match=r"of|broke"):
        download(f"{state.url}/x.bin", tmp_path / "x", SHA)
    assert not (tmp_path / "x").exists()
    kept = (tmp_path / "x.part").stat().st_size
    assert kept > 0
    download(f"{state.url}/x.bin", tmp_path / "x", SHA)
    assert state.requests[-1][1] == f"bytes={kept}-"
    assert (tmp_path / "x").read_bytes() == DATA


def test_http_starts_anew_when_the_file_changed_or_ranges_are_unknown(web: Web, tmp_path: Path) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    (tmp_path / "x.part").write_bytes(b"stale" * 100)
    (tmp_path / "x.part.version").write_text('"another"')
    assert download(f"{state.url}/x.bin", tmp_path / "x", SHA).read_bytes() == DATA
    state.ranges, state.drops = False, 1
    assert download(f"{state.url}/x.bin", tmp_path / "y", SHA).read_bytes() == DATA


def test_wrong_checksum_is_refused_and_leaves_nothing(web: Web, tmp_path: Path) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(b"flipped")
    with pytest.raises(DataError, match=r"x\.bin: sha256 is .* expected"):
        download(f"{state.url}/x.bin", tmp_path / "x", SHA)
    with pytest.raises(DataError, match="expected"):
        download(f"{state.url}/x.bin#sha256={SHA}", tmp_path / "x")
    assert list(tmp_path.glob("x*")) == []


def test_http_refusals_are_named(web: Web, tmp_path: Path) -> None:
    state, _ = web
    with pytest.raises(NotFound, match="404"):
        download(f"{state.url}/none", tmp_path / "x")
    state.refuse = 403
    with pytest.raises(StorageError, match=r"403"):
        download(f"{state.url}/none", tmp_path / "x")
    state.refuse = 503
    with pytest.raises(ServiceError, match="503"):
        download(f"{state.url}/none", tmp_path / "x")
    dead = f"127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError, match=dead):
        download(f"http://{dead}/x", tmp_path / "x")


def test_two_at_once_fetch_once_each_whole(web: Web, tmp_path: Path) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    threads = [threading.Thread(target=download, args=(f"{state.url}/x.bin", tmp_path / "x", SHA)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_bytes() == DATA
    assert len(state.requests) == 1


def test_hub_uses_token_and_its_sha256_but_keeps_the_token_from_others(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub answers with a redirect to a store and names the sha256 beside it."""
    state, folder = web
    (folder / "blob").write_bytes(DATA)
    with serving(folder) as hub:
        hub.redirects["/datasets/org/set/resolve/v1/sa.tar"] = f"{state.url}/blob"
        hub.headers["X-Linked-Etag"] = f'"{SHA}"'
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert download("hf://datasets/org/set@v1/sa.tar", tmp_path / "x").read_bytes() == DATA
        assert hub.requests[0][2] == "Bearer hf_secret"
        assert {authorization for _, _, authorization in state.requests} == {""}
        hub.headers["X-Linked-Etag"] = f'"{"0" * 64}"'
        with pytest.raises(DataError, match="sha256"):
            download("hf://datasets/org/set@v1/sa.tar", tmp_path / "y")


def test_hub_forms() -> None:
    from atelier.storage.hub import parse

    assert parse("hf://org/repo/a/b.bin") == ("model", "org/repo", "main", "a/b.bin")
    assert parse("hf://datasets/org/repo@refs%2Fpr%2F1/x") == ("dataset", "org/repo", "refs/pr/1", "x")
    with pytest.raises(ConfigError, match="names no file"):
        parse("hf://org/repo")


def test_s3_download_and_resume(s3_bucket: str, tmp_path: Path) -> None:
    s3.write_bytes(s3_bucket + "/x.bin", DATA)
    assert download(s3_bucket + "/x.bin", tmp_path / "x", SHA).read_bytes() == DATA
    with s3.open_stream(s3_bucket + "/x.bin", 0) as stream:
        version = stream.version
    (tmp_path / "y.part").write_bytes(DATA[:1000])
    (tmp_path / "y.part.version").write_text(version)
    counted: list[int] = []
    download(s3_bucket + "/x.bin", tmp_path / "y", SHA, progress=counted.append)
    assert sum(counted) == len(DATA) - 1000
    with pytest.raises(NotFound, match=r"none\.bin"):
        download(s3_bucket + "/none.bin", tmp_path / "z")
    s3.write_bytes(s3_bucket + "/y.bin", b"y")
    assert expand(s3_bucket + "/*.bin") == [s3_bucket + "/x.bin", s3_bucket + "/y.bin"]


def test_local_files_are_linked_or_copied_and_checked(tmp_path: Path) -> None:
    source = tmp_path / "a b.tar"
    source.write_bytes(DATA)
    assert download(str(source), tmp_path / "out" / "x", SHA).samefile(source)
    assert download("file://" + str(source).replace(" ", "%20"), tmp_path / "y").read_bytes() == DATA
    with pytest.raises(NotFound, match="missing"):
        download(str(tmp_path / "missing.tar"), tmp_path / "z")
    with pytest.raises(DataError, match="sha256"):
        download(str(source), tmp_path / "z", "0" * 64)
    assert not (tmp_path / "z").exists()


def test_expand(tmp_path: Path) -> None:
    assert expand("s3://b/sa_{008..010}.tar") == [f"s3://b/sa_{n}.tar" for n in ("008", "009", "010")]
    assert expand("https://h/{a,b}?x=1") == ["https://h/a?x=1", "https://h/b?x=1"]
    for name in ("a.tar", "b.tar", "c.txt"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert len(expand(f"{tmp_path}/")) == 3
    with pytest.raises(DataError, match="no file fits"):
        expand(f"{tmp_path}/*.zip")
    # SA-1B's own list: a heading, then name and signed address.
    (tmp_path / "list.txt").write_text(
        f"file_name\tcdn_link\nsa_000000.tar\thttps://h/1_n.tar?sig=a\n# comment\n{tmp_path}/*.tar\n"
    )
    found = expand(f"@{tmp_path}/list.txt")
    assert found == ["https://h/1_n.tar?sig=a#name=sa_000000.tar", f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert file_name(found[0]) == "sa_000000.tar"
    for bad in ("https://h/", "https://h/x#name=../y", "https://h/.hidden"):
        with pytest.raises(ConfigError, match="no usable file name"):
            file_name(bad)
