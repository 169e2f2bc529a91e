"""Building the images of the steps with the builder that is there: docker, podman or buildah."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from atelier.errors import ConfigError, ServiceError
from atelier.orchestration.catalogue import nearest
from atelier.orchestration.profile import TARGETS, Profile
from atelier.storage.atomic import write_bytes

FILE = "images/Containerfile"
DIGESTS = "build/images.json"
BUILDERS = ("docker", "podman", "buildah")


@dataclass(frozen=True)
class Options:
    """What a build may be told.

    Attributes:
        targets: of ``TARGETS``; () is all.
        builder: "": the first that works.
        base_image: "": the Containerfile's own.
        torch_index: an index URL for torch alone, e.g. of its CUDA or CPU builds.
        wheels: a folder of wheels that are at hand.
        pip_config: pip's configuration, given to the build as a secret: no layer holds it.
        volumes: ``host:container`` of files or folders that the build needs to see (podman, buildah).
        push: to the registry, whose digests then go into ``build/images.json``.
    """

    targets: tuple[str, ...] = ()
    builder: str = ""
    base_image: str = ""
    torch_index: str = ""
    wheels: str = ""
    pip_config: str = ""
    volumes: tuple[str, ...] = ()
    push: bool = False


def build(project: Path, profile: Profile, options: Options, out: TextIO = sys.stdout) -> dict[str, str]:
    """Builds the images, and pushes them where asked to.

    Returns:
        target → reference: by digest where it was pushed, else by tag.

    Raises:
        ConfigError: an unknown target or builder, a file that is not there, no builder.
        ServiceError: the builder failed; its last lines are above.
    """
    targets = _targets(options.targets)
    for given in (options.wheels, options.pip_config):
        if given and not Path(given).exists():
            raise ConfigError(f"{given} does not exist", "correct the path")
    builder = _builder(options.builder)
    if options.volumes and builder == "docker":
        raise ConfigError("docker mounts no volumes in a build", "use WHEELS= and PIP_CONFIG=, or BUILDER=buildah")
    made: dict[str, str] = {}
    for target in targets:
        reference = profile.images.reference(target)
        out.write(f"{target}: {reference} by {builder}\n")
        out.flush()
        with tempfile.TemporaryDirectory() as folder:
            digest_file = Path(folder) / "digest"
            for command in commands(builder, target, reference, project, options, digest_file):
                _run(command, project, target)
            made[target] = _pinned(reference, digest_file) if options.push else reference
    if options.push:
        path = project / DIGESTS
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept(path)
        write_bytes(path, (json.dumps(kept | made, indent=1, sort_keys=True) + "\n").encode())
        out.write(f"digests: {path}\n")
    return made


def commands(
    builder: str, target: str, reference: str, project: Path, options: Options, digest_file: Path
) -> Iterator[list[str]]:
    """The builder's commands for one image, argument lists without a shell.

    Args:
        digest_file: where a push leaves the digest, in the builder's own form.
    """
    arguments = {"VERSION": version("atelier"), "REVISION": _revision(project)}
    arguments |= {"BASE_IMAGE": options.base_image} if options.base_image else {}
    arguments |= {"TORCH_INDEX": options.torch_index} if options.torch_index else {}
    words = ["--target", target, "--file", FILE, "--tag", reference]
    words += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    if options.pip_config:
        words += ["--secret", f"id=pip,src={Path(options.pip_config).absolute()}"]
    if options.wheels:
        words += ["--build-context", f"wheels={Path(options.wheels).absolute()}"]
    words += [word for volume in options.volumes for word in ("--volume", volume)]
    if builder == "docker":
        placed = ["--push", "--metadata-file", str(digest_file)] if options.push else ["--load"]
        yield ["docker", "buildx", "build", *words, *placed, "."]
        return
    # Every layer is a copy where the storage driver is vfs: one in the end is enough.
    yield [builder, "build", "--layers=false", *words, "."]
    if options.push:
        yield [builder, "push", "--digestfile", str(digest_file), reference]


def _targets(asked: Sequence[str]) -> tuple[str, ...]:
    for target in asked:
        if target not in TARGETS:
            raise ConfigError(
                f"there is no image {target!r}{nearest(target, list(TARGETS))}", f"one of: {', '.join(TARGETS)}"
            )
    return tuple(dict.fromkeys(asked)) or TARGETS


def _builder(asked: str) -> str:
    """The builder: the one asked for, else the first that answers."""
    if asked and asked not in BUILDERS:
        raise ConfigError(f"there is no builder {asked!r}{nearest(asked, list(BUILDERS))}", f"one of {BUILDERS}")
    reasons = []
    for name in [asked] if asked else BUILDERS:
        if shutil.which(name) is None:
            reasons.append(f"{name} is not installed")
            continue
        # docker's client alone builds nothing: its daemon must answer.
        probe = [name, "info"] if name == "docker" else [name, "--version"]
        try:
            done = subprocess.run(probe, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired:
            reasons.append(f"{name} does not answer")
            continue
        if done.returncode == 0:
            return name
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        reasons.append(f"{name}: {said[-1][:120]}")
    raise ConfigError(f"nothing to build images with: {'; '.join(reasons)}", "install docker, podman or buildah")


def _run(command: list[str], project: Path, target: str) -> None:
    try:
        done = subprocess.run(command, cwd=project)
    except OSError as error:
        raise ServiceError(f"{command[0]} could not be started: {error.strerror}", "install it, or BUILDER=") from None
    if done.returncode:
        raise ServiceError(
            f"{target}: `{' '.join(command[:2])}` failed with {done.returncode}", "its own lines above say why"
        )


def _pinned(reference: str, digest_file: Path) -> str:
    """The reference by the digest that the push reported."""
    text = digest_file.read_text(encoding="utf-8").strip()
    digest = json.loads(text)["containerimage.digest"] if text.startswith("{") else text
    name = reference.partition("@")[0]
    folder, _, last = name.rpartition("/")
    return f"{folder}{'/' if folder else ''}{last.partition(':')[0]}@{digest}"


def _kept(path: Path) -> dict[str, str]:
    """The digests of earlier pushes; a damaged file holds none, and must not cost those of this one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _revision(project: Path) -> str:
    """The commit that is built, with "+" where the tree differs from it; "" outside a repository."""
    try:
        head = _git(project, "rev-parse", "HEAD")
        return head + ("+" if _git(project, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(project: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
