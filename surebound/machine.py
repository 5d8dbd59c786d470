"""The machine a command runs on: its device, threads, memory and clock."""

from __future__ import annotations

import ctypes
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING

from surebound.errors import SureboundError, UsageError

if TYPE_CHECKING:
    import torch

UNITS: Mapping[str, int] = MappingProxyType(
    {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
)
"""Bytes by the letters before the B, in lower case."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?i?)b?", re.IGNORECASE)
_DEVICE = re.compile(r"cpu|cuda(?::(0|[1-9][0-9]*))?")


LONGEST = 1e8
"""Seconds, three years: longer limits are as good as none, and the system's clock may not take them."""


WORTH = 0.9
"""The part of one thread's time that several may take at most, to be used."""


class TimeLimit(SureboundError):
    """The time allowed is over."""

    exit_code = 0
    verdict = "timeout"


def parse_size(text: str) -> int:
    """Bytes of a size such as "4GB" (10^9 bytes each), "512MiB" (2^20) or "1000000"; UsageError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    size = 0 if match is None else int(float(match[1]) * UNITS.get(match[2].lower(), 0))
    if size <= 0:
        raise UsageError(f"'{text}' is not a size of memory; write a positive number and a unit, such as 4GB or 512MiB")
    return size


def check_device(name: str) -> str:
    """The device's name, after checking that this machine has it; UsageError otherwise."""
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise UsageError(f"unknown device '{name}'; give cpu, cuda or cuda:N")
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(f"device '{name}' is not available: torch finds no CUDA device here; use --device cpu")
    if int(match[1] or 0) >= count:
        raise UsageError(f"device '{name}' does not exist: there are {count}, cuda:0 to cuda:{count - 1}")
    return name


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of malloc.h."""


def use_threads(count: int | None) -> int:
    """Let torch compute with `count` threads; how many that are.

    None: with as many as it likes, where that is faster than one at the moment. The cores of a virtual machine may
    share one real core; threads that wait for each other there make a search ten times slower (docs/decisions.md).
    """
    import torch

    if count is not None:
        torch.set_num_threads(count)
    elif torch.get_num_threads() > 1 and not threads_help():
        torch.set_num_threads(1)
    return torch.get_num_threads()


def threads_help(calls: int = 32) -> bool:
    """Whether three calls in four of an op of 0.2 ms take less with torch's threads than half of them with one."""
    import torch

    x = torch.linspace(-4, 4, 1 << 18)
    x.sigmoid()

    def sorted_times() -> list[float]:
        times: list[float] = []
        for _ in range(calls):
            began = time.perf_counter()
            x.sigmoid()
            times.append(time.perf_counter() - began)
        return sorted(times)

    several = sorted_times()
    with one_thread():
        single = sorted_times()
    return several[3 * calls // 4] < WORTH * single[calls // 2]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: more gain nothing on small tensors, and what is computed no longer depends
    on the number of cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """Let the process keep what it frees, where the C library is glibc: to hand pieces of some MB back and to take
    them again, page by page, costs up to a fifth of a bound's or a training step's time (docs/decisions.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def peak_memory(device: torch.device) -> int:
    """The most memory that was ever in use so far, in bytes: of the process, or of a CUDA device by torch."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def ending_interrupts() -> Iterator[Callable[[], None]]:
    """Inside the block SIGTERM does what Ctrl-C does: it raises KeyboardInterrupt.

    What is yielded raises it again where it was swallowed, as Python does in the callbacks of weak references; long
    work calls it from time to time. For the main thread of a POSIX system.
    """
    told: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        raise KeyboardInterrupt

    def again() -> None:
        if told:
            raise KeyboardInterrupt

    ours = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # background jobs of a shell ignore it
        ours.append(signal.SIGINT)
    handlers = [(number, signal.signal(number, interrupt)) for number in ours]
    try:
        yield again
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise TimeLimit inside the block once `seconds` are over, if there is a limit.

    For the main thread of a POSIX system.
    """
    if seconds is None:
        yield
        return

    def over(signum: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"{what} did not end within {seconds:g} seconds; allow more with --timeout")

    handler = signal.signal(signal.SIGALRM, over)
    timer = signal.setitimer(signal.ITIMER_REAL, min(seconds, LONGEST))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def reset_peak() -> bool:
    """Hand back memory that is free and forget the peak of `resident_peak`; False where the system has no way to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_peak() -> int:
    """The most memory of the process since `reset_peak`, in bytes (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10
