"""What a host is busy with while its ranks train: CPU, memory, disk, network and GPUs, every few seconds."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import psutil

logger = logging.getLogger(__name__)

SYSTEM = "system"  # the kind of these events
_FIRST_SECONDS = 1.0  # so that a short run has a sample, too


class HostMetrics:
    """Samples this host in a thread of its own; a context manager around the training.

    The metrics are `system/<host>/…`: MLflow's page shows what begins with `system/` in a place of its own.
    Their step is the number of seconds since the run began: it goes on over restarts, while the training's
    steps go back.

    Args:
        emit: takes the events: {"kind": "system", "host", "step", "values"}.
        began: when the run did, in seconds since 1970.
    """

    def __init__(
        self, emit: Callable[[Mapping[str, Any]], None], began: float, interval_seconds: float
    ) -> None:
        self._emit, self._began, self._interval_seconds = emit, began, interval_seconds
        self._host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            with _gpus() as look_at_gpus:
                counters = _Counters()
                pause = min(_FIRST_SECONDS, self._interval_seconds)
                while not self._stopping.wait(pause):
                    self._tell({**counters.look(), **look_at_gpus()})
                    pause = self._interval_seconds
                self._tell({**counters.look(), **look_at_gpus()})  # a short training has this one alone
        except Exception as error:  # no reason to end a training
            logger.warning("no more metrics of this host: %s: %s", type(error).__name__, error)

    def _tell(self, values: Mapping[str, float]) -> None:
        step = int(time.time() - self._began)
        named = {f"{SYSTEM}/{self._host}/{name}": value for name, value in values.items()}
        self._emit({"kind": SYSTEM, "host": self._host, "step": step, "values": named})


class _Counters:
    """What psutil tells; rates are between two looks."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # is about the time since the call before
        self._looked, self._totals = time.monotonic(), _totals()

    def look(self) -> dict[str, float]:
        now, totals, memory = time.monotonic(), _totals(), psutil.virtual_memory()
        seconds = max(now - self._looked, 1e-3)
        rates = {
            f"{name}_per_second": max(total - self._totals.get(name, total), 0.0) / seconds
            for name, total in totals.items()
        }
        self._looked, self._totals = now, totals
        used = {"memory_percent": float(memory.percent), "memory_bytes": float(memory.used)}
        return {"cpu_percent": float(psutil.cpu_percent()), **used, **rates}


def _totals() -> dict[str, float]:
    """Bytes since the host started; a container may not see its disks, or its network."""
    found: dict[str, float] = {}
    with suppress(OSError, RuntimeError):
        if (disk := psutil.disk_io_counters()) is not None:
            found |= {"disk_read_bytes": disk.read_bytes, "disk_written_bytes": disk.write_bytes}
    with suppress(OSError, RuntimeError):
        # What ranks of one host tell each other is no traffic of the network's.
        cards = [card for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        found["network_received_bytes"] = sum(card.bytes_recv for card in cards)
        found["network_sent_bytes"] = sum(card.bytes_sent for card in cards)
    return found


@contextmanager
def _gpus() -> Iterator[Callable[[], dict[str, float]]]:
    """Yield what looks at the GPUs of this host; at nothing without nvidia-ml-py, a driver, or a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        yield dict
        return
    try:
        yield _look_at_gpus
    finally:
        pynvml.nvmlShutdown()


def _look_at_gpus() -> dict[str, float]:
    import pynvml

    values: dict[str, float] = {}
    for number in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError):  # a slice of a GPU tells less than a whole one
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            values[f"gpu_{number}_memory_bytes"] = float(pynvml.nvmlDeviceGetMemoryInfo(device).used)
            values[f"gpu_{number}_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
    return values
