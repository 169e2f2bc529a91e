import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.errors import StorageError
from atelier.storage import uri
from atelier.storage.atomic import NotFound, os_errors, replace_file, write_bytes, write_json

NOBODY = 65534


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that may be read but not written, seen by a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        folder = parent / "forbidden"
        folder.mkdir()
        parent.chmod(0o755)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_replaces_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": 1})
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with contextlib.suppress(RuntimeError), replace_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_missing_permission_names_the_path(forbidden: Path) -> None:
    with pytest.raises(StorageError, match="permission") as caught:
        write_bytes(forbidden / "a", b"x")
    assert "forbidden" in caught.value.what
    with pytest.raises(StorageError, match="permission"):
        uri.check_writable(str(forbidden))


def test_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing-here"), os_errors(tmp_path):
        (tmp_path / "nothing-here").read_bytes()


def test_full_disk_names_path_and_free_space(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the same write fails in the same place."""
    code = """
import resource, signal, sys
from pathlib import Path
from atelier.errors import StorageError
from atelier.storage.folder import OutputFolder
from atelier.storage.atomic import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"x" * 5000)
except StorageError as error:
    print(error)
"""
    target = tmp_path / "big.bin"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert "big.bin" in done.stdout
    assert "MiB free" in done.stdout
    assert "free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_full_tmpfs(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {made.stderr.strip()}")
    try:
        with pytest.raises(StorageError, match=r"No space left.*MiB free"):
            write_bytes(mount / "a", b"x" * 200_000)
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)
