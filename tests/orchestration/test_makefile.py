"""What a person gives `make` reaches neither a shell nor make's own functions."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The real Makefile over a command line that only writes down what reaches it."""
    shutil.copy(MAKEFILE, tmp_path / "Makefile")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    binary = tmp_path / ".venv" / "bin" / "atelier"
    binary.parent.mkdir(parents=True)
    binary.write_text('#!/bin/sh\nprintf "%s|%s|%s|%s" "$1" "$ATELIER_SET" "$ATELIER_ARTIFACTS" "$ATELIER_PIPELINE"\n')
    binary.chmod(binary.stat().st_mode | stat.S_IEXEC)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(project: Path, *words: str, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "MAKE", "MFLAGS"))}
    result = subprocess.run(
        ["make", *words], cwd=project, env=clean | env, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


@pytest.mark.parametrize(
    "value",
    [
        "a=$(touch pwned)",
        "a=$(shell touch pwned)",
        "a=`touch pwned`",
        "a='; touch pwned; '",
        'a="x y" b=$$HOME',
        "a=${HOME} # c",
        "a=$(eval X:=1)\\",
    ],
)
def test_values_arrive_as_typed(project: Path, value: str) -> None:
    assert make(project, "run", f"SET={value}") == f"run|{value}||"
    assert make(project, "run", f"ARTIFACTS={value}", "PIPELINE=p") == f"run||{value}|p"
    assert make(project, "run", SET=value) == f"run|{value}||"
    assert not (project / "pwned").exists()


def test_help_names_every_target(project: Path) -> None:
    text = make(project)
    for target in ("run", "resume", "list", "status", "logs", "ui", "compile", "submit", "schedule", "test", "check"):
        assert f"make {target}" in text


def test_a_time_zone_counts_only_where_it_was_typed(project: Path) -> None:
    binary = project / ".venv" / "bin" / "atelier"
    binary.write_text('#!/bin/sh\nprintf "%s|%s|%s|%s" "$1" "$ATELIER_CRON" "$ATELIER_TZ" "$ATELIER_HOST"\n')
    assert make(project, "schedule", "CRON=0 3 * * 1", "TZ=Europe/Berlin", TZ="UTC") == (
        "schedule|0 3 * * 1|Europe/Berlin|"
    )
    assert make(project, "schedule", "CRON=$(shell touch pwned) * * * *", TZ="UTC", HOST="https://a.b/$(x)") == (
        "schedule|$(shell touch pwned) * * * *||https://a.b/$(x)"
    )
    assert not (project / "pwned").exists()
