"""What a rank's collectives send: counted call by call by the ring convention, and as its sockets say.

The ring convention: of a tensor of S bytes and among W ranks, a ring sends (W-1)/W S bytes from each rank for an
all-gather, a reduce-scatter and (on average over the ranks) a broadcast, and twice that for an all-reduce, whatever the
library really does. NCCL's rings do this; so does gloo, but for the reduce-scatter, which it makes an all-reduce.
"""

import os
import socket
import stat
import struct
from collections import Counter

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RING = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1, "broadcast_": 1}
GLOO = RING | {"_reduce_scatter_base_": 2}
SENT, AGAIN = 200, 208  # offsets of tcpi_bytes_sent and tcpi_bytes_retrans in Linux's struct tcp_info


class Traffic(TorchDispatchMode):
    """Counts every collective inside, those of DDP's reducer too: `size`, bytes of whole tensors, and `calls` by name.

    It sees what this thread starts, and a backward pass on the CPU runs in the thread that asks for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__
            assert name in RING, f"no convention for {name}"
            # the largest is the whole tensor, of which a gather or a scatter also gets this rank's part
            self.size[name] += max(x.numel() * x.element_size() for x in tree_leaves(args) if isinstance(x, Tensor))
            self.calls[name] += 1
        return function(*args, **(kwargs or {}))


def sent(size: dict[str, int], world: int, convention: dict[str, int] = RING) -> float:
    """Bytes that each of `world` ranks sends for collectives over tensors of `size` bytes."""
    return sum(convention[name] * count for name, count in size.items()) * (world - 1) / world


def sent_by_sockets() -> int:
    """Payload bytes that this process's TCP connections have sent so far, Linux's own count."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                continue
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile: the folder's own descriptor
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, AGAIN + 8)
                total += struct.unpack_from("<Q", state, SENT)[0] - struct.unpack_from("<Q", state, AGAIN)[0]
    return total
