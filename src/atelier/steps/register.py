"""Register: a version in MLflow's model registry, by URI; the weights stay in the artifact store."""

import json
from typing import Any

from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, model: Manifest, evaluation: Manifest, training: Manifest, name: str, artifacts: str) -> Manifest:
    """A manifest of kind ``registration`` with name, version and aliases in its metadata and ``registration.json``.

    The registry is one of the step's parameters: in another one, or in one that was removed and made again, the model
    is registered anew.

    Raises:
        DataError: the model's folder is not complete.
        ServiceError: MLflow does not answer.
    """
    from atelier.tracking.registry import identity

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.tracking.registry import register

        verdict = evaluation.metadata
        tags = {
            "atelier.run_id": ctx.run_id,
            "atelier.recipe": model.metadata.get("recipe", ""),
            "atelier.profile": model.metadata.get("profile", ""),
            "atelier.evaluation": evaluation.digest,
            "atelier.bars": json.dumps(verdict.get("bars", {})),
            "atelier.training": training.digest,
            **{f"atelier.start.{name}": value for name, value in training.metadata.get("start", {}).items()},
        }
        made = register(name, model.uri, ctx.track.run_id(), verdict["metrics"], tags, passed=bool(verdict["passed"]))
        registration = {
            "name": made.name,
            "version": made.version,
            "aliases": list(made.aliases),
            "uri": made.uri,
            "source": made.source,
            "digest": made.digest,
            "passed": bool(verdict["passed"]),
        }
        (ctx.out.path / "registration.json").write_text(json.dumps(registration, indent=1))
        return "registration", registration

    return run_step(
        name="register",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"model": model, "evaluation": evaluation, "training": training},
        params={"name": name, "registry": identity()},
        artifacts=artifacts,
        extra_modules=("atelier.tracking.registry",),
    )
