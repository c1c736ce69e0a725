"""GPUs: Spark knows one by its address on the host, CUDA by its number among those that a process may see."""

from __future__ import annotations

from sparktrain.errors import DeviceUnknown


def device_index(address: str, visible: str | None) -> int:
    """Return the number by which CUDA knows a GPU that Spark knows by its address on the host.

    Args:
        address: a number, or the name of a MIG slice.
        visible: the worker's CUDA_VISIBLE_DEVICES, in whose order CUDA counts.

    Raises:
        DeviceUnknown: a name that is not among the visible ones.
    """
    listed = [entry.strip() for entry in visible.split(",")] if visible else []
    if address in listed:
        return listed.index(address)
    if not address.isdecimal():
        raise DeviceUnknown(address, visible)
    return int(address)
