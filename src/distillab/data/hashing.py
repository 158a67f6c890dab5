"""Randomness as arithmetic: integer hashes of (seed, view, image), the same on every device."""

from __future__ import annotations

from enum import IntEnum
from typing import overload

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


def draws(seed: int, view: int | Tensor, indices: Tensor, stream: Stream) -> Tensor:
    """Random 64-bit numbers, one an image: a pure function of (seed, view, index, stream).

    Output number `index` of the generator SplitMix64 that starts from a hash of (seed, view, stream).

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17, with the
    constants of Vigna's SplitMix64; the key is the same mixing applied to seed, view and stream in turn.

    Args:
        seed: Any whole number; only its lowest 64 bits count.
        view: Any whole number likewise, an epoch; or the same as a [] int64 tensor on the device of `indices`, so
            that a captured graph can be told another one.
        indices: [N] int64, on any device.
        stream: What the draw decides.

    Returns:
        [N] int64, uniform over all 64-bit values, on the device of `indices`.
    """
    key = _mixed(_wrapped(_key(seed, view) + int(stream) + _GAMMA))
    return _mixed((indices + 1) * _GAMMA + key)


def all_draws(seed: int, view: int | Tensor, indices: Tensor) -> Tensor:
    """`draws` of every stream at once, for the price of one where few images make launches the cost.

    Args:
        seed: As for `draws`.
        view: As for `draws`.
        indices: [N] int64, on any device.

    Returns:
        [len(Stream), N] int64; row `stream` is what `draws` gives for it.
    """
    streams = torch.arange(len(Stream), device=indices.device)
    keys = _mixed(_key(seed, view) + streams + _GAMMA)
    return _mixed((indices + 1) * _GAMMA + keys[:, None])


def below(bits: Tensor, bound: int) -> Tensor:
    """Whole numbers from 0 to bound - 1 made of draws.

    Args:
        bits: [N] int64 of `draws`.
        bound: 1..2^31; numbers are off uniform by a share of bound / 2^32 at most.

    Returns:
        [N] int64.
    """
    return (_shifted(bits, 32) * bound) >> 32


def _key(seed: int, view: int | Tensor) -> int | Tensor:
    return _mixed(_wrapped(_mixed(_wrapped(seed + _GAMMA)) + view + _GAMMA))


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the signed number that tensors hold."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


@overload
def _wrapped(bits: int) -> int: ...
@overload
def _wrapped(bits: Tensor) -> Tensor: ...
def _wrapped(bits: int | Tensor) -> int | Tensor:
    """The same modulo 2^64: tensors wrap around by themselves."""
    return bits if isinstance(bits, Tensor) else _signed(bits)


@overload
def _shifted(bits: int, places: int) -> int: ...
@overload
def _shifted(bits: Tensor, places: int) -> Tensor: ...
def _shifted(bits: int | Tensor, places: int) -> int | Tensor:
    # Signed numbers shift arithmetically; the mask clears the copies of the sign bit.
    return (bits >> places) & ((1 << (64 - places)) - 1)


@overload
def _mixed(bits: int) -> int: ...
@overload
def _mixed(bits: Tensor) -> Tensor: ...
def _mixed(bits: int | Tensor) -> int | Tensor:
    bits = _wrapped((bits ^ _shifted(bits, 30)) * _FIRST)
    bits = _wrapped((bits ^ _shifted(bits, 27)) * _SECOND)
    return bits ^ _shifted(bits, 31)
