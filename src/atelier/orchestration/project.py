"""Where the project is: the folder that holds ``pipelines/`` and ``components/``."""

import os
import sys
from pathlib import Path

from atelier.errors import ConfigError


def find_project(start: Path | None = None) -> Path:
    """The project's root: ``ATELIER_PROJECT``, else the nearest folder upwards that has ``pipelines/``.

    Raises:
        ConfigError: there is none.
    """
    named = os.environ.get("ATELIER_PROJECT")
    if named:
        root = Path(named).expanduser().resolve()
        if not (root / "pipelines").is_dir():
            raise ConfigError(f"ATELIER_PROJECT={named} has no folder pipelines/", "give the repository's root")
        return root
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "pipelines").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise ConfigError(
        f"{here} is not inside an Atelier project (no folder upwards has pyproject.toml and pipelines/)",
        "change into the repository, or set ATELIER_PROJECT",
    )


def enter(project: Path) -> None:
    """Makes the project's ``pipelines`` and ``components`` importable in this process, before any other of the name."""
    path = str(project)
    if sys.path[:1] != [path]:
        sys.path.insert(0, path)
