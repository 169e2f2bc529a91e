"""What the builders are told, and what becomes of what they say; the images themselves: ``test_built_images.py``."""

import io
import json
import re
import subprocess
from pathlib import Path

import pytest

from atelier.errors import ConfigError, ServiceError
from atelier.orchestration import images, profile
from atelier.orchestration.images import Options, build, commands
from atelier.orchestration.profile import TARGETS

PROJECT = Path(__file__).parents[2]
CONTAINERFILE = (PROJECT / images.FILE).read_text()
PAPER = profile.load(PROJECT, "paper")


def told(builder: str, options: Options, tmp_path: Path) -> list[list[str]]:
    return list(commands(builder, "ops", "reg.example.com/a/python-ops:1", PROJECT, options, tmp_path / "digest"))


def test_every_image_is_a_target_that_does_not_run_as_root() -> None:
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", CONTAINERFILE, re.MULTILINE))
    finals = re.findall(r"^FROM final AS (\S+)$", CONTAINERFILE, re.MULTILINE)
    assert finals == list(TARGETS)
    assert stages["${BASE_IMAGE}"] == "base"
    final = CONTAINERFILE.split("AS final")[1].split("FROM")[0]
    assert re.search(r"^USER 1000:1000$", final, re.MULTILINE)
    assert "org.opencontainers.image.revision" in final
    assert not re.search(r"^USER", CONTAINERFILE.split("AS final")[1].split("FROM", 1)[1], re.MULTILINE)


def test_everything_is_installed_by_the_pinned_versions() -> None:
    installs = re.findall(r"pip install .*", CONTAINERFILE)
    assert len(installs) == 5
    assert all("-c constraints.txt" in line for line in installs)
    kept = (PROJECT / ".containerignore").read_text().split()
    assert kept[0] == "*", "nothing gets into a build that is not named"


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_what_is_built(builder: str, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("")
    options = Options(
        base_image="my/base:1", torch_index="https://index.example.com/cpu", pip_config=str(tmp_path / "pip.conf"),
        wheels=str(tmp_path),
    )  # fmt: skip
    (command,) = told(builder, options, tmp_path)
    text = " ".join(command)
    for words in (
        "--target ops", "--tag reg.example.com/a/python-ops:1", "--build-arg BASE_IMAGE=my/base:1",
        "--build-arg TORCH_INDEX=https://index.example.com/cpu", f"--secret id=pip,src={tmp_path}/pip.conf",
        f"--build-context wheels={tmp_path}", "--build-arg VERSION=",
    ):  # fmt: skip
        assert words in text
    assert command[-1] == "."
    pushed = told(builder, Options(push=True), tmp_path)
    assert len(pushed) == (1 if builder == "docker" else 2)
    assert ("--push" in pushed[0]) == (builder == "docker")


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_first_builder_that_answers_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker's client without a daemon is none; what was pushed stands in the file by digest, the rest stays there."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stand_in(tools, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    log = tmp_path / "log"
    stand_in(
        tools,
        "buildah",
        f'echo "$@" >> {log}\n[ "$1" = push ] || exit 0\n'
        f'while [ "$1" != --digestfile ]; do shift; done\nprintf sha256:{"a" * 64} > "$2"',
    )
    for tool in ("sh", "git"):
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (tools / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    project = tmp_path / "project"
    (project / "build").mkdir(parents=True)
    (project / images.DIGESTS).write_text(json.dumps({"train": "kept@sha256:1"}))
    made = build(project, PAPER, Options(targets=("ops", "ops"), push=True), io.StringIO())
    reference = f"registry.example.com/atelier/python-ops@sha256:{'a' * 64}"
    assert made == {"ops": reference}
    assert profile.pinned(reference)
    assert json.loads((project / images.DIGESTS).read_text()) == {"ops": reference, "train": "kept@sha256:1"}
    said = log.read_text().splitlines()
    assert [line.split()[0] for line in said] == ["--version", "build", "push"]

    stand_in(tools, "buildah", '[ "$1" = --version ]')
    with pytest.raises(ServiceError, match="ops: `buildah build` failed with 1"):
        build(project, PAPER, Options(targets=("ops",)), io.StringIO())
    (tools / "buildah").unlink()
    with pytest.raises(ConfigError, match=r"nothing to build.*daemon; podman is not installed; buildah is not"):
        build(project, PAPER, Options(), io.StringIO())


def test_docker_names_its_digest_in_its_own_way(tmp_path: Path) -> None:
    record = tmp_path / "metadata"
    record.write_text(json.dumps({"containerimage.digest": f"sha256:{'b' * 64}"}))
    assert images._pinned("host:5000/a/python-ops:1.0", record) == f"host:5000/a/python-ops@sha256:{'b' * 64}"


def test_wrong_wishes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no image 'op'.*did you mean ops"):
        build(PROJECT, PAPER, Options(targets=("op",)))
    with pytest.raises(ConfigError, match="no builder 'dokcer'"):
        build(PROJECT, PAPER, Options(builder="dokcer"))
    with pytest.raises(ConfigError, match=r"none\.conf does not exist"):
        build(PROJECT, PAPER, Options(pip_config=str(tmp_path / "none.conf")))
