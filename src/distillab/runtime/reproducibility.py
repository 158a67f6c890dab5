"""Randomness that depends on seeds alone, and leaves the caller's generators as they were."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch

NUMERICS = 4
"""Raised by every change after which a run from the same settings comes out otherwise: see *Numerics* in the changelog.
A run that was saved under another number does not go on unless it is forced."""


def derived_seed(*parts: int | str) -> int:
    """A seed for one purpose, from the run's seed and names or numbers of that purpose.

    Args:
        parts: Such as (seed, "student", "weights") or (seed, "dropout", step).

    Returns:
        0 <= seed < 2**63, the same on every machine.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextlib.contextmanager
def isolated_generators(device: torch.device) -> Iterator[None]:
    """Torch's global generators may be reseeded inside; the caller finds its own state again."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Draw initial weights and the like from a seed of their own (see `derived_seed`), on the CPU."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would reseed the accelerators, whose state is not put back.
        torch.default_generator.manual_seed(derived_seed(*parts))
        yield
