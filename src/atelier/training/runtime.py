"""What a rank sets up before its first tensor: threads, backends, the process group."""

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process's place in the group."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes, logs and draws."""
        return self.rank == 0


def start_ranks(threads: int) -> Ranks:
    """Joins the process group that torchrun's variables describe (a group of one without them).

    On a CPU the flash kernel of scaled-dot-product attention is turned off: its backward was half of a small UNet's
    step (112 → 190 samples/s without it).
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_flash_sdp(False)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not on_gpu:
        # DeepSpeed would compile its C++ operators for the CPU at the first start (20 s where there is a compiler),
        # none of which is used here: the optimizer is torch's, the collectives are gloo's.
        deepspeed.ops.__compatible_ops__ = {}
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
