"""``atelier images``: its options."""

import argparse

from atelier.orchestration.command_line import Command, given, true


def add_command(command: Command) -> None:
    """Adds the command.

    Args:
        command: (name, function, help) → its parser.
    """
    images = command("images", _images, "build the images of the steps with docker, podman or buildah")
    images.add_argument("targets", nargs="*", default=given("TARGETS").split(), help="ops, train, annotate, evaluate")
    images.add_argument("--profile", default=given("PROFILE"), help="whose registry and tag; default: paper")
    images.add_argument("--builder", default=given("BUILDER"), help="docker, podman or buildah")
    images.add_argument("--base-image", default=given("BASE_IMAGE"), help="with Python 3.11, or what holds it")
    images.add_argument("--torch-index", default=given("TORCH_INDEX"), metavar="URL", help="where torch comes from")
    images.add_argument("--wheels", default=given("WHEELS"), metavar="FOLDER", help="wheels that are at hand")
    images.add_argument("--pip-config", default=given("PIP_CONFIG"), metavar="FILE", help="a secret of the build")
    images.add_argument(
        "--volume", action="append", default=given("VOLUMES").split(), metavar="HOST:PATH", help="seen by the build"
    )
    images.add_argument(
        "--push", action="store_true", default=true("PUSH"),
        help="to the registry; digests go into build/images.json",
    )  # fmt: skip


def _images(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import profile
    from atelier.orchestration.images import Options, build
    from atelier.orchestration.project import find_project

    project = find_project()
    options = Options(
        targets=tuple(arguments.targets),
        builder=arguments.builder,
        base_image=arguments.base_image,
        torch_index=arguments.torch_index,
        wheels=arguments.wheels,
        pip_config=arguments.pip_config,
        volumes=tuple(arguments.volume),
        push=arguments.push,
    )
    for target, reference in build(project, profile.load(project, arguments.profile), options).items():
        print(f"{target} {reference}")
    return 0
