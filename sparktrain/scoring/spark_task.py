"""What the Spark task that this process works for was granted: CPUs, and perhaps a GPU."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import torch

from sparktrain.devices import device_index
from sparktrain.errors import GpuUnusable

if TYPE_CHECKING:
    from pyspark import TaskContext


def device_and_threads() -> torch.device:
    """Give torch the Spark task's CPUs and return where to run a module; outside of one, leave all as it is.

    Raises:
        GpuUnusable: the task has a GPU that torch can't use.
        DeviceUnknown: the task has a GPU that CUDA can't be asked for by its name.
    """
    context = _context()
    if context is None:
        return torch.device("cpu")
    # more would fight the executor's other tasks for its cores
    torch.set_num_threads(max(1, int(context.cpus())))
    granted = context.resources().get("gpu")
    if granted is None or not granted.addresses:
        return torch.device("cpu")
    return gpu(granted.addresses[0], os.environ.get("CUDA_VISIBLE_DEVICES"))


def session_time_zone() -> str | None:
    """The zone of the Spark session whose task this process works for, if it was set; None outside of one."""
    context = _context()
    return context.getLocalProperty("spark.sql.session.timeZone") if context is not None else None


def gpu(address: str, visible: str | None) -> torch.device:
    """Return the GPU that Spark granted by this address.

    Args:
        visible: the process' CUDA_VISIBLE_DEVICES.

    Raises:
        GpuUnusable, DeviceUnknown
    """
    index, there = device_index(address, visible), torch.cuda.device_count()
    if index >= there:
        raise GpuUnusable(address, there, torch.__version__)
    return torch.device("cuda", index)


def _context() -> TaskContext | None:
    """The task's context; a process that never imported pyspark works for none."""
    pyspark = sys.modules.get("pyspark")
    return pyspark.TaskContext.get() if pyspark is not None else None
