"""Two hosts and a slow cable between them: network namespaces of a process of its own, that end with it.

The rate is the kernel's work (tc's tbf), the delay is ours, because many a kernel comes without tc's netem:
what a host sends goes through its TUN device to this process, and from here, when its time has come, to the
other's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque

from tests.benchmarks.children import serve

ADDRESSES = ("10.213.8.1", "10.213.8.2")
DEVICE = "cable"
_MTU = 9000  # fewer packets to carry
_QUEUE_BYTES = 1 << 20  # in front of the cable
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000  # of <linux/if_tun.h>


def open_hosts(rate: str, delay_seconds: float) -> list[str] | str:
    """Make the hosts; return the path of each one's network namespace, or why it is not to be had.

    Args:
        rate: of each direction, as tc writes it: "50mbit".
        delay_seconds: each way.
    """
    try:
        hosts = [_open_host(address, rate) for address in ADDRESSES]
    except (OSError, subprocess.CalledProcessError) as error:
        return str(getattr(error, "stderr", None) or error)
    ends = [end for end, _ in hosts]
    threading.Thread(target=_carry, args=(ends, delay_seconds), daemon=True).start()
    return [f"/proc/{os.getpid()}/fd/{namespace}" for _, namespace in hosts]


def _open_host(address: str, rate: str) -> tuple[int, int]:
    """Make one namespace with one end of the cable; return the descriptors of both."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace of its own")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    for command in (
        "ip link set lo up",
        f"ip addr add {address}/24 dev {DEVICE}",
        f"ip link set {DEVICE} mtu {_MTU} up",
        f"tc qdisc add dev {DEVICE} root tbf rate {rate} burst 64kb limit {_QUEUE_BYTES}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=30)
    return end, os.open("/proc/self/ns/net", os.O_RDONLY)


def _carry(ends: list[int], delay_seconds: float) -> None:
    """Give each packet that comes out of one end to the other end, so much later."""
    under_way: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}
    others = dict(zip(ends, reversed(ends), strict=True))
    while True:
        due = [packets[0][0] for packets in under_way.values() if packets]
        wait = max(min(due) - time.monotonic(), 0.0) if due else None
        for end in select.select(ends, [], [], wait)[0]:
            under_way[others[end]].append((time.monotonic() + delay_seconds, os.read(end, 1 << 16)))
        now = time.monotonic()
        for end, packets in under_way.items():
            while packets and packets[0][0] <= now:
                os.write(end, packets.popleft()[1])


if __name__ == "__main__":
    serve(open_hosts)
