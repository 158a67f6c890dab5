"""Dropout that costs a CPU little: its masks are cut from few draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """Elementwise dropout, with masks that a CPU draws four at a time.

    y = x * m / q, the m independent: 1 with probability q, else 0; q = 1 - round(65536 p) / 65536

    In training on a CPU each m is a comparison of 16 bits, and four of them are cut from one 64-bit draw of torch's
    default generator; torch's own dropout there draws once a mask and waits for the draws most of the time. The draws
    are dealt out in the order in which x lies in memory, by one thread, so a mask depends on the generator's state and
    the layout of x alone. Elsewhere (on other devices, under torch.compile, and where 16 bits cannot tell p from 0 or
    1) it is `nn.Dropout`.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014, Dropout: a simple way to prevent neural
    networks from overfitting.

    Args:
        p: Probability of an element to be dropped, 0..1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: Tensor) -> Tensor:
        """Map floats of any shape to as many, in the same memory order; x itself in evaluation."""
        num_dropped = round(self.p * _LEVELS)
        if (
            not self.training
            or x.device.type != "cpu"
            or not 0 < num_dropped < _LEVELS
            or torch.compiler.is_compiling()
        ):
            return super().forward(x)
        return x * _scaled_mask(x, num_dropped)


def _scaled_mask(like: Tensor, num_dropped: int) -> Tensor:
    """Zeros with probability `num_dropped` / 65536, elsewhere what keeps the mean; laid out as the other tensor is."""
    mask = torch.empty_like(like)
    draws = torch.empty(-(-mask.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: mask.numel()]  # uniform in -32768..32767
    # Through a flat view, which a fresh tensor always has: where type and strides both differ, torch takes five times
    # as long to compare.
    torch.ge(bits, num_dropped - _LEVELS // 2, out=mask.as_strided((mask.numel(),), (1,)))
    return mask.mul_(_LEVELS / (_LEVELS - num_dropped))
