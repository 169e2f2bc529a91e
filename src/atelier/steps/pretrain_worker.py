"""One rank of the twin base's training: ``python -m atelier.steps.pretrain_worker plan.json`` under torchrun."""

import sys
from pathlib import Path


def main(plan_path: str) -> int:
    """Trains the UNet as the plan says; returns the process's exit code."""
    from atelier.errors import Preempted
    from atelier.recipes.twins import base, make
    from atelier.recipes.twins.shape import shape
    from atelier.steps.pretrain import worker_plan
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.engine import train

    plan = worker_plan(Path(plan_path))
    config = make.base_train_config(plan["seed"])
    dataset = base.CurriculumDataset(config.steps * config.batch_size, plan["seed"], plan["size"])
    objective = base.BaseObjective(shape(plan["twin"]), Path(plan["parts"]), plan["size"])
    folder = Path(plan["folder"])
    result = train(objective, dataset, config, folder, standard_callbacks(config), loader=base.InOrder)
    return 0 if result.outcome == "complete" else Preempted.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
