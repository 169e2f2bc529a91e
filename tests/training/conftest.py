"""One rank in this process: the engine under test without torchrun."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.data.loader import Loader
from tests.training.launching import CONFIG, launch, plan

GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Callable[..., Any]]:
    """Trains the toy in this process: ``one_rank(folder, objective, callbacks=…, **config changes)``.

    One process group for the whole session: DeepSpeed keeps its own reference to the first.
    """
    import torch

    from atelier.convert.weights import of_safetensors
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.config import TrainConfig
    from atelier.training.engine import train
    from atelier.training.warm_start import start_from
    from tests.training.toy import ToyDataset, ToyObjective

    threads = torch.get_num_threads()

    def run(
        folder: Path,
        objective: ToyObjective | None = None,
        callbacks: Any = (),
        adapter: Path | None = None,
        dataset: Any = None,
        **changes: Any,
    ) -> Any:
        config = TrainConfig(**(CONFIG | {"processes": 1} | changes))
        found = [*standard_callbacks(config), *callbacks]
        with pytest.MonkeyPatch.context() as patch:
            for name in GROUP:
                patch.delenv(name, raising=False)
            try:
                return train(
                    objective or ToyObjective(),
                    dataset or ToyDataset(),
                    config,
                    folder,
                    found,
                    loader=Loader,
                    start=adapter and (lambda state: start_from(state, of_safetensors(adapter), adapter.name)),
                )
            finally:
                for name in GROUP:
                    os.environ.pop(name, None)
                torch.set_num_threads(threads)

    yield run
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training on two ranks that nobody disturbed (and that drew no previews)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    launch(plan(folder))
    return folder
