"""What happens beside the training itself: one small file each."""

from atelier.training.callbacks.base import Callback, Request
from atelier.training.callbacks.checkpoint import SaveCheckpoints
from atelier.training.callbacks.keep_previews import KeepPreviews
from atelier.training.callbacks.metrics_log import LogMetrics, Tracker
from atelier.training.callbacks.preview import DrawPreviews
from atelier.training.callbacks.progress import ShowProgress
from atelier.training.callbacks.stop_signal import StopOnSignal
from atelier.training.callbacks.system_metrics import LogSystemMetrics
from atelier.training.callbacks.trainer_status import ReportTrainerStatus
from atelier.training.callbacks.validation import Validate
from atelier.training.config import TrainConfig

__all__ = ["Callback", "Request", "Tracker", "standard_callbacks"]


def standard_callbacks(
    config: TrainConfig, tracker: Tracker | None = None, outputs_at: str | None = None
) -> list[Callback]:
    """What every training has: progress, the loss log, previews and validation where asked for, checkpoints, …

    Args:
        tracker: where rank 0 sends numbers and pictures besides the folder, and the first process of each other node
            its system metrics; None on other ranks or without one.
        outputs_at: where the training's files will go, when that is not its folder (see ``engine.train``).
    """
    callbacks: list[Callback] = [
        ShowProgress(), LogMetrics(tracker), SaveCheckpoints(), StopOnSignal(), ReportTrainerStatus(),
    ]  # fmt: skip
    if config.preview_every is not None or config.validate_every is not None:
        previews = DrawPreviews(tracker)
        kept = [KeepPreviews(outputs_at)] if outputs_at else []
        callbacks[2:2] = [*kept, previews, Validate(previews, tracker)]
    if tracker is not None:
        callbacks.append(LogSystemMetrics(tracker))
    return callbacks
