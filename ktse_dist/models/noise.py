"""Dropout whose noise is a pure function of keys: same mask on every device, rank layout and after every resume."""

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def drop_channels(x: Tensor, p: float, keys: Tensor | None, use: int) -> Tensor:
    """Channel dropout (`Dropout2d`): whole channels become 0 with probability `p`, the others grow by 1/(1-p).

    x [B,C,H,W]; keys int64 [B], one a sample, None = no dropout (inference); `use` numbers the dropout layers
    of a network, so that each draws its own mask. The mask depends on (key, use, channel) and nothing else.
    """
    if keys is None:
        return x
    keep = channel_hash(keys, use, x.shape[1]) >= int(p * 2**32)
    return x * (keep / (1 - p)).to(x.dtype)[:, :, None, None]


def channel_hash(keys: Tensor, use: int, channels: int) -> Tensor:
    """Uniform integers in [0, 2^32), int64 [B,channels]: 32-bit mixing in int64 arithmetic, exact on every device."""
    state = _mix((keys & _LOW) + 0x9E3779B9)
    state = _mix(state ^ ((keys >> 32) & _LOW))
    state = _mix(state + use * 0x85EBCA6B)
    channel = torch.arange(channels, device=keys.device, dtype=torch.int64)
    return _mix(state[:, None] ^ _mix(channel + 0xC2B2AE35))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers in which every input bit moves every output bit (xor-shift, multiply, twice)."""
    x = x & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)
