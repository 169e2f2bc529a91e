"""Errors a person reads: each names the input, what is wrong with it and what to do."""


class AtelierError(Exception):
    """The base of every error that is shown without a traceback.

    Args:
        what: one sentence that names the input and what is wrong with it.
        fix: what the reader can do about it (shown after "try:").
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}\n  try: {fix}" if fix else what)


class ConfigError(AtelierError):
    """A parameter, profile, recipe or environment variable is wrong; nothing was started."""

    exit_code = 2


class DataError(AtelierError):
    """Input data is missing, damaged, or too much of it was quarantined."""

    exit_code = 3


class StorageError(AtelierError):
    """A file, bucket or disk cannot be read or written."""

    exit_code = 4


class ServiceError(AtelierError):
    """A server that the run needs (MLflow, S3, KFP) does not answer or refuses."""

    exit_code = 5


class TrainingError(AtelierError):
    """A training process failed; the message carries the failed rank's last lines."""

    exit_code = 6


class OutOfMemory(TrainingError):
    """A training needed more memory than a GPU, a node or ``/dev/shm`` has."""

    exit_code = 7


class CollectiveFailed(TrainingError):
    """The ranks of a training lost each other: a collective timed out or a link broke."""

    exit_code = 8


class NodeLost(TrainingError):
    """A machine under a training went away or broke."""

    exit_code = 9


class Preempted(AtelierError):
    """The process was asked to end (SIGTERM, SIGINT) and saved its state first; running again resumes."""

    exit_code = 75
