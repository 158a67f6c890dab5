"""Randomness as arithmetic: integer hashes of (seed, view, image), the same on every device."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a draw decides; two streams of one image have nothing to do with each other.

    The numbers are part of every result: a new stream gets a new number, an old one keeps its own.
    """

    SPLIT = 0
    ORDER = 1
    CROP_Y = 2
    CROP_X = 3
    FLIP = 4
    CUTOUT_Y = 5
    CUTOUT_X = 6
    PARTNER = 7
    MIXUP_OR_CUTMIX = 8
    LAMBDA = 9
    BOX_Y = 10
    BOX_X = 11


def draws(seed: int, view: int, indices: Tensor, stream: Stream) -> Tensor:
    """Random 64-bit numbers, one an image: a pure function of (seed, view, index, stream).

    Output number `index` of the generator SplitMix64 that starts from a hash of (seed, view, stream).

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17, with the
    constants of Vigna's SplitMix64; the key is the same mixing applied to seed, view and stream in turn.

    Args:
        seed: Any whole number; only its lowest 64 bits count.
        view: Any whole number likewise; an epoch.
        indices: [N] int64, on any device.
        stream: What the draw decides.

    Returns:
        [N] int64, uniform over all 64-bit values, on the device of `indices`.
    """
    key = torch.zeros((), dtype=torch.int64)
    for part in (seed, view, int(stream)):
        key = _mixed(key + _signed(part) + _GAMMA)
    # A 0-d tensor of the CPU enters as a number: no device waits for it.
    return _mixed((indices + 1) * _GAMMA + key)


def below(bits: Tensor, bound: int) -> Tensor:
    """Whole numbers from 0 to bound - 1 made of draws.

    Args:
        bits: [N] int64 of `draws`.
        bound: 1..2^31; numbers are off uniform by a share of bound / 2^32 at most.

    Returns:
        [N] int64.
    """
    return (_shifted(bits, 32) * bound) >> 32


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the signed number that tensors hold."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shifted(bits: Tensor, places: int) -> Tensor:
    # Tensors shift arithmetically; the mask clears the copies of the sign bit.
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mixed(bits: Tensor) -> Tensor:
    # Products wrap around modulo 2^64, which is what the hash wants.
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)
