"""What models run on: device, numbers, and threads beside one another."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from multiprocessing import parent_process
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from tamis.storage.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
Precision = Literal["float32", "bfloat16", "float16"]

#: Is there where a driver for NVIDIA's devices is.
_NVIDIA = Path("/proc/driver/nvidia/version")


def device_for(wanted: str) -> str:
    """`cpu` or `cuda`, whichever is meant; `auto` is cuda where there is one.

    Raises:
        UserError: if there is no CUDA device and one is wanted.
    """
    if wanted == "cpu" or (wanted == "auto" and not _NVIDIA.exists()):
        return "cpu"  # without PyTorch, which takes a second to import
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError("device: there is no CUDA device", mend="set `device: cpu` or `auto`")
    return "cuda" if there else "cpu"


def precision_for(wanted: str, device: str) -> str:
    """Numbers to compute in: `auto` is bfloat16 where the hardware has it."""
    if wanted != "auto":
        return wanted
    if device == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    try:
        words = set(Path("/proc/cpuinfo").read_text("ascii", "replace").split())
    except OSError:
        return "float32"
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def model_threads() -> int:
    """Threads that forwards run on: this process's cores, one in a process among others."""
    return 1 if parent_process() is not None else len(os.sched_getaffinity(0))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on this thread alone: several forwards run beside one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loaded_once(most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Remember what a function loaded, `most` things at once, whatever threads ask for it.

    A plain cache would load anew in every thread that asks while the first still loads.
    """

    def wrap(load: Callable[P, T]) -> Callable[P, T]:
        held = lru_cache(maxsize=most)(load)
        loading = threading.Lock()

        @wraps(load)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with loading:
                return held(*args, **kwargs)  # type: ignore[arg-type]

        return call

    return wrap
