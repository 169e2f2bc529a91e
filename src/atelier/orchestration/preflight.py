"""What a local run needs, looked at before anything starts."""

import shutil
from pathlib import Path

from atelier.errors import ConfigError, StorageError
from atelier.storage.uri import check_writable, is_local, local_path

#: What the laptop profile was seen to need at its peak, with room to spare.
NEEDED_MEMORY_GB = 3.0
NEEDED_DISK_GB = 1.0


def check(project: Path, artifacts: str, tracking_uri: str) -> None:
    """Raises the first thing that would fail any run later.

    Raises:
        ConfigError: there is too little memory.
        StorageError, ServiceError: artifacts cannot be written, the disk is full, MLflow does not answer.
    """
    from atelier.tracking.runs import ping

    check_memory()
    check_disk(project)
    check_writable(artifacts)
    if is_local(artifacts):
        check_disk(local_path(artifacts))
    ping(tracking_uri)


def check_device(profile: str) -> None:
    """Refuses a profile that wants GPUs where there are none; a pipeline without profiles ("") has none that does."""
    if profile not in ("laptop", "") and not Path("/dev/nvidia0").exists():
        raise ConfigError(
            f"the profile {profile} trains the published size and there is no GPU here",
            "PROFILE=laptop runs the tiny twin here; the paper's size runs on a cluster",
        )


def check_memory() -> None:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < NEEDED_MEMORY_GB:
        raise ConfigError(
            f"{free:.1f} GB of memory are free; two training processes need {NEEDED_MEMORY_GB:.0f} GB",
            "close other programs",
        )


def check_disk(folder: Path) -> None:
    """Looks at the file system of the folder (or of its nearest parent that exists)."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < NEEDED_DISK_GB:
        raise StorageError(
            f"{free:.2f} GB are free at {folder}; a run needs {NEEDED_DISK_GB:.0f} GB",
            "free space, or put the artifacts elsewhere: ARTIFACTS=/other/disk",
        )
