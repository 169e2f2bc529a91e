"""What ``torch.save`` writes are zips without compression: one with compression is none of its, and may be a bomb."""

import zipfile
from pathlib import Path

from atelier.errors import DataError
from atelier.storage.atomic import os_errors


def is_zip(path: Path) -> bool:
    """Whether torch wrote it since 1.6; only such a file can be mapped into memory.

    Raises:
        DataError: its members are larger than the file. torch would unpack a gigabyte from each megabyte before it
            looks at what is in it, and not map anything.
        StorageError: it cannot be read.
    """
    with os_errors(path), path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return True  # torch says what is wrong with it
        size = file.seek(0, 2)
    unpacked = sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise DataError(
            f"{path}: a compressed zip, {size:,} bytes that unpack to {unpacked:,}; torch.save compresses nothing",
            "take the file as it was published",
        )
    return True
