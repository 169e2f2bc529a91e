"""What a source file imports and the digest of its code, remembered between processes: parsing takes most of a second.

A file is parsed again when its time of change or its size is another one. What was remembered by another version of
this module, or by another Python, counts for nothing.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from atelier.errors import StorageError
from atelier.storage.atomic import write_bytes

Import = tuple[str, int, tuple[str, ...]]
"""(module, level, names), as in ``from ..module import names``."""
Facts = tuple[str, tuple[Import, ...]]

_known: dict[str, tuple[list[int], Facts]] | None = None
_changed = False


def facts(path: Path) -> Facts:
    """(sha256 of the code in hex, its imports); comments, docstrings and formatting are no part of the code."""
    known = _remembered()
    stat = path.stat()
    mark = [stat.st_mtime_ns, stat.st_size]
    found = known.get(str(path))
    if found is not None and found[0] == mark:
        return found[1]
    made = _parse(path)
    known[str(path)] = (mark, made)
    global _changed
    _changed = True
    return made


def remember() -> None:
    """Writes what was parsed since the last call, where that is possible: it is a convenience."""
    global _changed
    if _changed and _known is not None:
        with contextlib.suppress(OSError, StorageError):
            store = _store()
            if store.parent.is_dir():
                write_bytes(store, json.dumps({"version": _version(), "files": _known}).encode())
        _changed = False


def _parse(path: Path) -> Facts:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, 0, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.module or "", node.level, tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return hashlib.sha256(ast.dump(tree, include_attributes=False).encode()).hexdigest(), tuple(imports)


@functools.cache
def _version() -> str:
    # Pythons do not dump a tree alike.
    return hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()


def _store() -> Path:
    return Path(os.environ.get("ATELIER_PROJECT") or Path.cwd()) / ".atelier" / "code.json"


def _remembered() -> dict[str, tuple[list[int], Facts]]:
    global _known
    if _known is None:
        _known = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(_store().read_text(encoding="utf-8"))
            if stored["version"] == _version():
                _known = {
                    path: (mark, (digest, tuple((base, level, tuple(names)) for base, level, names in imports)))
                    for path, (mark, (digest, imports)) in stored["files"].items()
                }
    return _known
