"""What makes a student's feature comparable with a teacher's: regressors, and maps of one size."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from distillab.errors import ShapeError


def build_regressor(student_feature: Tensor, teacher_feature: Tensor, *, rectified: bool) -> nn.Sequential:
    """The FitNets regressor r: from the channels of a student's feature to those of a teacher's.

    Maps: r = ReLU(BatchNorm(Conv3x3(F_s))), at the student's resolution; vectors: r = ReLU(BatchNorm(Linear(F_s))).
    The convolution has no bias, since BatchNorm would take it away again.

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.2; BatchNorm is added.

    Args:
        student_feature: Example [N, D_s, H, W] or [N, D_s]; tells shape, type and device of the parameters.
        teacher_feature: Example [N, D_t, H', W'] or [N, D_t].
        rectified: Whether the teacher's feature comes after a ReLU. A regressor that ends in one cannot reach
            negative targets, so it is left out where this is False.

    Returns:
        A module in training mode, on the student feature's device.

    Raises:
        ShapeError: The two are not both maps or both vectors.
    """
    if student_feature.ndim != teacher_feature.ndim or student_feature.ndim not in (2, 4):
        raise ShapeError(
            f"no regressor leads from {list(student_feature.shape)} to {list(teacher_feature.shape)}",
            where="guided layer and hint layer",
            hint="take two layers that both give maps [N, D, H, W], or both vectors [N, D]",
        )
    source, target = student_feature.shape[1], teacher_feature.shape[1]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if student_feature.ndim == 4:
        layers["project"] = nn.Conv2d(source, target, 3, padding=1, bias=False)
        layers["norm"] = nn.BatchNorm2d(target)
    else:
        layers["project"] = nn.Linear(source, target, bias=False)
        layers["norm"] = nn.BatchNorm1d(target)
    if rectified:
        layers["rectify"] = nn.ReLU()
    return nn.Sequential(layers).to(student_feature)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two features of one height and width: the larger is average-pooled to the smaller.

    Each of height and width shrinks from n to m by windows of n - (m - 1) * (n // m) pixels, n // m apart:
    disjoint where m divides n, else overlapping, and together they cover everything.

    Args:
        a: [N, D, H, W], or [N, D], which has no size and stays as it is.
        b: [N, D', H', W'] or [N, D'].

    Returns:
        [N, D, min(H, H'), min(W, W')] and [N, D', min(H, H'), min(W, W')].

    Raises:
        ShapeError: One is a map and the other is not, or they are neither maps nor vectors.
    """
    if a.ndim != b.ndim or a.ndim not in (2, 4):
        raise ShapeError(
            f"features {list(a.shape)} and {list(b.shape)} cannot be compared",
            where="features",
            hint="both must be maps [N, D, H, W], or both vectors [N, D]",
        )
    if a.ndim == 2:
        return a, b
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return _pool(a, height, width), _pool(b, height, width)


def _pool(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2:] == (height, width):
        return x
    # Not adaptive pooling: its backward is not deterministic on a GPU.
    stride = (x.shape[2] // height, x.shape[3] // width)
    kernel = (x.shape[2] - (height - 1) * stride[0], x.shape[3] - (width - 1) * stride[1])
    return F.avg_pool2d(x, kernel, stride)
