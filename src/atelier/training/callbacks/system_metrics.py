"""What each node's processor, memory and GPUs are doing, beside the loss in the tracker."""

import os
import threading
from typing import Any

import psutil

from atelier.training.callbacks.base import Callback
from atelier.training.callbacks.metrics_log import Tracker
from atelier.training.run import TrainingRun

EVERY_S = 10.0


class LogSystemMetrics(Callback):
    """Samples the node every ``every_s`` seconds, in a thread of local rank 0.

    Names are MLflow's (``system/node-0/cpu_utilization_percentage``), so its page shows them under "System metrics".
    MLflow's own monitor is not used: it stops for good when the server is away once, asks for the whole run at every
    sample, and counts samples where ours are laid over the training's steps.

    Args:
        tracker: None on all but the node's first process.
        node: the node's name; torchrun's GROUP_RANK by default.
    """

    def __init__(self, tracker: Tracker | None, node: str | None = None, every_s: float = EVERY_S) -> None:
        self.tracker, self.every_s = tracker, every_s
        self.prefix = f"system/{node or 'node-' + os.environ.get('GROUP_RANK', '0')}/"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._gpus: list[Any] = []

    def on_start(self, run: TrainingRun) -> None:
        if self.tracker is None:
            return
        self._gpus = gpu_handles()
        psutil.cpu_percent()  # the first call only marks the beginning
        self._thread = threading.Thread(target=self._sample, args=(run, self.tracker), name="system", daemon=True)
        self._thread.start()

    def on_end(self, run: TrainingRun) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self, run: TrainingRun, tracker: Tracker) -> None:
        while not self._ended.wait(self.every_s):
            values = processor_and_memory() | gpus(self._gpus)
            tracker.log_metrics({self.prefix + name: value for name, value in values.items()}, run.step)


def processor_and_memory() -> dict[str, float]:
    """This machine's, since the last call."""
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": memory.percent,
    }


def gpu_handles() -> list[Any]:
    """NVML's handles of this machine's GPUs; none without a driver or without ``nvidia-ml-py``."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no module, no driver, no permission: all mean that there is nothing to show
        return []


def gpus(handles: list[Any]) -> dict[str, float]:
    """Utilisation and memory of each GPU; what one does not tell is left out."""
    values: dict[str, float] = {}
    if not handles:
        return values
    import pynvml

    for index, handle in enumerate(handles):
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            values[f"gpu_{index}_memory_usage_megabytes"] = round(memory.used / 1e6, 1)
            values[f"gpu_{index}_memory_usage_percentage"] = round(100 * memory.used / memory.total, 1)
            values[f"gpu_{index}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            values[f"gpu_{index}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        except pynvml.NVMLError:
            continue
    return values
