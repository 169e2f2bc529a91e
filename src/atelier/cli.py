"""The command line: ``atelier run``, ``list``, ``status``, ``logs``, ``compile``, ``convert``, ``sample``, ``submit`` …

Every option can also be given as an environment variable (``ATELIER_SET``, ``ATELIER_PROFILE`` …): so the Makefile
passes on what a person typed without a shell ever reading it. Imports are inside the commands: help is instant.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, ConfigError
from atelier.orchestration import images_command, plan_command, submit_command
from atelier.orchestration.command_line import table

DEFAULT_PIPELINE = "igligen_xl_512"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors of ours are one message, not a traceback."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except AtelierError as error:
        print(f"atelier: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atelier", description="Trains layout- and text-to-image models by published recipes."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=function)
        return sub

    run = command("run", _run, "run a whole pipeline here, now; finished steps come from the cache")
    run.add_argument("pipeline", nargs="?", default=os.environ.get("ATELIER_PIPELINE") or DEFAULT_PIPELINE)
    run.add_argument("--profile", default=os.environ.get("ATELIER_PROFILE", ""), help="laptop or paper")
    run.add_argument(
        "--artifacts", default=os.environ.get("ATELIER_ARTIFACTS", ""), metavar="URI", help="where outputs go"
    )
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be given many times"
    )
    run.add_argument(
        "--only-if-new", action="store_true", help="end at once where the champion was trained on these very data"
    )

    command("resume", _resume, "run the newest run's pipeline again with the parameters it had")
    command("list", _list, "the pipelines and their parameters").add_argument("pipeline", nargs="?", default="")

    status = command("status", _status, "the runs, or one run's steps")
    status.add_argument(
        "run", nargs="?", default=os.environ.get("ATELIER_RUN", ""), help="a run's id, or its beginning"
    )

    logs = command("logs", _logs, "a step's log; without a step, the one that failed or ran last")
    logs.add_argument("step", nargs="?", default=os.environ.get("ATELIER_STEP", ""))
    logs.add_argument("--run", default=os.environ.get("ATELIER_RUN", ""), help="a run's id; default: the newest")
    logs.add_argument("--lines", type=int, default=0, help="only the last ones; 0: all")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the step ends")

    compiled = command("compile", _compile, "write every pipeline as Kubeflow YAML to build/pipelines/")
    compiled.add_argument("pipeline", nargs="?", default=os.environ.get("ATELIER_PIPELINE", ""))
    compiled.add_argument(
        "--profile",
        default=os.environ.get("ATELIER_PROFILE", ""),
        help="of profiles/, or a file's path; default: paper",
    )

    plan_command.add_command(command, DEFAULT_PIPELINE)
    submit_command.add_commands(command, DEFAULT_PIPELINE)
    images_command.add_command(command)

    convert = command("convert", _convert, "convert a GLIGEN checkpoint from one form to another (docs/convert.md)")
    convert.add_argument("source", type=Path, help="a checkpoint of any form; which one is found out")
    convert.add_argument("target", type=Path, help="what to write; must not exist")
    convert.add_argument(
        "--to", default="", metavar="FORM", help="diffusers, unet, original, adapter, igligen-xl or checkpoint"
    )
    convert.add_argument("--base", type=Path, metavar="FOLDER", help="the base model's diffusers folder")
    convert.add_argument("--dtype", default="", help="fp32, fp16 or bf16; default: as stored")
    convert.add_argument("--average", action="store_true", help="the moving average of the trained weights")
    convert.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one weight file (default 5GB)")

    crossflow = command("convert-crossflow", _convert_crossflow, "a CrossFlow checkpoint to a folder, or back")
    crossflow.add_argument("source", type=Path, help="a released .pth (or .safetensors), or a model's folder")
    crossflow.add_argument("target", type=Path, help="a folder, or for a folder's way back a .pth or .safetensors")
    crossflow.add_argument("--configuration", default="", metavar="NAME", help="which it must be, e.g. 512px_t5_dit")
    crossflow.add_argument("--base", type=Path, metavar="FOLDER", help="vae, text_encoder and tokenizer to take along")
    crossflow.add_argument("--dtype", default="", help="fp32, fp16 or bf16; default: as stored")
    crossflow.add_argument("--keep-tower", action="store_true", help="the contrastive loss's image tower too")

    layers = command("convert-regional", _convert_regional, "Rich-context's layers to a model's folder, or out of one")
    layers.add_argument("source", type=Path, help="a released folder, a .pth or .safetensors of layers, or a model's")
    layers.add_argument("target", type=Path, help="a folder (with --base), or a .pth or .safetensors of the layers")
    layers.add_argument("--base", type=Path, metavar="FOLDER", help="the diffusers folder that they were trained on")
    rules = layers.add_mutually_exclusive_group()
    rules.add_argument(
        "--own-rules", action="store_true", help="regions are cut by our rules, whatever the source states"
    )
    rules.add_argument("--upstream-rules", action="store_true", help="by upstream's: so too where nothing is stated")
    lora = command("convert-lora", _convert_lora, "a FLUX LoRA from one file format to another (docs/convert.md)")
    lora.add_argument("source", type=Path, help="a LoRA of any format, or its folder; which one is found out")
    lora.add_argument("target", type=Path, help="what to write; must not exist")
    lora.add_argument("--to", required=True, metavar="FORM", help="diffusers, peft, kohya or aitoolkit")
    lora.add_argument("--base", type=Path, metavar="FOLDER", help="the FLUX model, to check layers and shapes against")
    lora.add_argument("--dtype", default="", help="fp32, fp16 or bf16; default: as stored")
    lora.add_argument("--alpha", type=float, metavar="NUMBER", help="of a bare peft state dict, which does not say it")

    from atelier.evaluation import regional_command as regional
    from atelier.evaluation import text_command as judged
    from atelier.evaluation.geneval.command import add_geneval_arguments
    from atelier.sampling import command as sample
    from atelier.sampling import text_command as text

    sample.add_arguments(command("sample", sample.run, "draw pictures with a trained model: a prompt, boxes, phrases"))

    text.add_paint_arguments(command("paint", text.paint, "draw pictures of prompts with a CrossFlow model"))
    text.add_interpolate_arguments(
        command("interpolate", text.interpolate, "pictures from one prompt to another: a strip and a GIF")
    )
    text.add_arithmetic_arguments(
        command("arithmetic", text.arithmetic, "a picture of one prompt plus and minus others: a strip and a GIF")
    )

    judged.add_evaluate_text_arguments(
        command("evaluate-text", judged.evaluate_text, "FID and CLIP score of a CrossFlow model (docs/evaluation.md)")
    )

    regional.add_layouts_arguments(
        command("layouts", regional.layouts, "write the layouts of labelled pictures (rich-context data) to draw them")
    )
    regional.add_evaluate_layouts_arguments(
        command(
            "evaluate-layouts",
            regional.evaluate_layouts,
            "CropCLIP, CropPick and SAMIoU of pictures with boxes (docs/evaluation.md)",
        )
    )

    add_geneval_arguments(
        command("geneval", _geneval, "GenEval's scores of a CrossFlow model, by a detector of your choice")
    )

    ui = command("ui", _ui, "open MLflow's page on this project's runs and models")
    ui.add_argument("--port", type=int, default=os.environ.get("ATELIER_PORT") or 5000)

    command("doctor", _doctor, "look at everything that a run needs").add_argument(
        "--artifacts", default=os.environ.get("ATELIER_ARTIFACTS", ""), metavar="URI"
    )
    return parser


def _project() -> Path:
    from atelier.orchestration.project import find_project

    return find_project()


def _run(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import local, params

    given = params.parse([*params.split(os.environ.get("ATELIER_SET", "")), *arguments.set])
    return local.run(
        _project(), arguments.pipeline, given, arguments.profile, arguments.artifacts, only_if_new=arguments.only_if_new
    )


def _resume(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import ledger, local

    project = _project()
    pipeline, given = local.resumable(ledger.find(project))
    return local.run(project, pipeline, given)


def _list(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import catalogue, walk

    project = _project()
    for name in [arguments.pipeline] if arguments.pipeline else catalogue.names(project):
        pipeline = catalogue.load(project, name)
        print(f"{name}: {walk.count(pipeline)} steps. {pipeline.description}")
        for parameter in pipeline.parameters.values():
            choices = f" ({' | '.join(parameter.choices)})" if parameter.choices else ""
            default = "" if parameter.default in ("", None) else f" = {parameter.default}"
            print(f"  {parameter.name}: {parameter.type}{default}{choices}\n      {parameter.description}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import ledger

    project = _project()
    if arguments.run:
        return _status_of(ledger.find(project, arguments.run))
    rows = [("RUN", "STATUS", "STEPS", "TIME", "PARAMETERS")]
    for run in ledger.runs(project):
        facts, steps = run.facts(), run.steps()
        ended = sum(step["status"] in ("done", "cached") for step in steps)
        seconds = run.summary().get("seconds") or time.time() - facts.get("started", time.time())
        given = " ".join(f"{name}={value}" for name, value in facts.get("given", {}).items())
        rows.append((run.id, run.status(), str(ended), f"{seconds:.0f} s", given))
    print("\n".join(table(rows)))
    newest = ledger.runs(project)
    if newest and newest[0].status() == "running":
        print()
        _status_of(newest[0])
    return 0


def _status_of(run: Any) -> int:
    rows = [("STEP", "STATUS", "TIME", "")]
    for record in run.steps():
        seconds = record.get("seconds", time.time() - record["started"])
        if record["status"] == "running":
            note = run.live(record).get("line", "")
        else:
            note = (record.get("error") or {}).get("what", "") or (record.get("output") or {}).get("uri", "")
        rows.append((f"{record['number']:02d} {record['name']}", record["status"], f"{seconds:.1f} s", note))
    print(f"{run.id}: {run.status()}")
    print("\n".join(table(rows)))
    for name, value in run.summary().get("metrics", {}).items():
        print(f"  {name} {value:.4g}" if isinstance(value, float) else f"  {name} {value}")
    if run.report.exists():
        print(f"report {run.report}")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import catalogue, ledger

    run = ledger.find(_project(), arguments.run)
    records = run.steps()
    if arguments.step == "kfp" or not records:
        path, record = run.kfp_log, None
    else:
        names = [record["name"] for record in records]
        if arguments.step and arguments.step not in names:
            raise ConfigError(
                f"the run {run.id} has no step {arguments.step!r}{catalogue.nearest(arguments.step, names)}",
                f"one of: {', '.join(names)}, kfp",
            )
        chosen = [r for r in records if r["name"] == arguments.step] or [
            *(r for r in records if r["status"] == "failed"),
            records[-1],
        ][:1]
        record = chosen[-1]
        path = run.log_of(record)
    if not path.exists():
        raise ConfigError(f"{path} does not exist", "the step wrote nothing yet")
    if arguments.lines:
        print("\n".join(ledger.tail(path, arguments.lines)))
        if not arguments.follow:
            return 0
    with path.open(encoding="utf-8", errors="replace") as file:
        if arguments.lines:
            file.seek(0, os.SEEK_END)
        while True:
            text = file.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if text:
                continue
            running = record is not None and any(
                r["number"] == record["number"] and r["status"] == "running" for r in run.steps()
            )
            if not (arguments.follow and running and run.status() == "running"):
                return 0
            time.sleep(0.3)


def _compile(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import profile
    from atelier.orchestration.compile import compile_all

    project = _project()
    for path in compile_all(project, profile.load(project, arguments.profile), arguments.pipeline or None):
        print(path)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from atelier.convert.conversion import convert

    given = vars(arguments)
    names = ("source", "target", "to", "base", "dtype", "average", "max_shard_size")
    print("\n".join(convert(**{name: given[name] for name in names}).lines))
    return 0


def _geneval(arguments: argparse.Namespace) -> int:
    from atelier.evaluation.geneval.command import geneval

    def opened(name: str) -> Any:
        from atelier.annotate.finders import open_finder

        return open_finder(name)

    return geneval(arguments, opened)


def _convert_crossflow(arguments: argparse.Namespace) -> int:
    from atelier.convert.crossflow import to_folder, to_released

    if arguments.source.is_dir():
        done = to_released(arguments.source, arguments.target)
    else:
        done = to_folder(
            arguments.source,
            arguments.target,
            arguments.configuration,
            arguments.base,
            arguments.dtype,
            arguments.keep_tower,
        )
    print("\n".join(done.lines))
    return 0


def _convert_regional(arguments: argparse.Namespace) -> int:
    from atelier.convert.regional_folder import to_folder, to_layers

    parity = arguments.upstream_rules if arguments.own_rules or arguments.upstream_rules else None
    if arguments.target.suffix in (".pth", ".safetensors"):
        print("\n".join(to_layers(arguments.source, arguments.target, parity)))
        return 0
    if arguments.base is None:
        raise ConfigError("layers alone draw nothing", "give --base FOLDER, the model that they were trained on")
    print("\n".join(to_folder(arguments.source, arguments.target, arguments.base, parity)))
    return 0


def _convert_lora(arguments: argparse.Namespace) -> int:
    from atelier.convert.lora_command import convert_lora

    given = vars(arguments)
    names = ("source", "target", "to", "base", "dtype", "alpha")
    print("\n".join(convert_lora(**{name: given[name] for name in names}).lines))
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    import shutil
    import socket

    from atelier.tracking.runs import default_uri

    project = _project()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(project)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow's page is {uri}")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            raise ConfigError(
                f"port {arguments.port} cannot be used: {error.strerror}", "choose another: make ui PORT=5001"
            ) from error
    beside = Path(sys.executable).parent / "mlflow"
    mlflow = str(beside) if beside.exists() else shutil.which("mlflow")
    if mlflow is None:
        raise ConfigError("mlflow is not installed in full (mlflow-skinny has no page)", "pip install -e '.[laptop]'")
    print(f"http://127.0.0.1:{arguments.port} (Ctrl-C ends it)", flush=True)
    os.execv(  # noqa: S606 (no shell is meant)
        mlflow,
        [
            mlflow,
            "server",
            "--backend-store-uri",
            uri,
            "--default-artifact-root",
            str(project / "mlartifacts"),
            "--host",
            "127.0.0.1",
            "--port",
            str(arguments.port),
            "--workers",
            "1",
        ],
    )
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from importlib import metadata

    from atelier.orchestration import local, preflight
    from atelier.storage.uri import check_writable
    from atelier.tracking.runs import default_uri, ping

    project = _project()
    artifacts = local.absolute(arguments.artifacts or str(project / ".atelier" / "artifacts"))
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(project)

    def libraries() -> None:
        for library in ("torch", "deepspeed", "diffusers", "transformers", "kfp", "mlflow"):
            try:
                print(f"       {library} {metadata.version(library)}")
            except metadata.PackageNotFoundError as error:
                raise ConfigError(
                    f"{library} is not installed", "`make .venv`, or pip install -e '.[laptop]'"
                ) from error

    checks: list[tuple[str, Callable[[], None]]] = [
        ("libraries", libraries),
        ("memory", preflight.check_memory),
        (f"disk at {project}", lambda: preflight.check_disk(project)),
        (f"artifacts {artifacts}", lambda: check_writable(artifacts)),
        (f"MLflow {tracking}", lambda: ping(tracking)),
    ]
    bad = 0
    for name, check in checks:
        try:
            check()
            print(f"ok     {name}")
        except AtelierError as error:
            bad += 1
            print(f"NOT OK {name}\n       {error}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
