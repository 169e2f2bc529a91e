"""sha256 of files, bytes and JSON: content only, no time, no place."""

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(obj: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes.

    Raises:
        ValueError: ``obj`` holds NaN or infinity, which JSON does not have.
        TypeError: ``obj`` holds something that JSON cannot express.
    """
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_json(obj: Any) -> str:
    """Hex sha256 of ``canonical_json(obj)``."""
    return sha256_bytes(canonical_json(obj))
