"""Random changes of training images, in batches, where the images are: a pure function of (seed, view, image)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from distillab.data.config import AugmentConfig
from distillab.data.hashing import Stream, below, draws

_NUM_QUANTILES = 4096


def augment(images: Tensor, rows: Tensor, *, config: AugmentConfig, seed: int, view: int, image_size: int) -> Tensor:
    """One view of some images: random crop and flip, resize, cutout.

    - Crop: pad with `crop_padding` zeros on each side, cut the original size at a place that is uniform over
      the (2 * padding + 1)^2 possible ones. In pixels of the stored images.
    - Flip: mirror left and right with probability 1/2, after the crop.
    - Resize to `image_size`, bilinearly with antialiasing, where the stored images have another size.
    - Cutout: blank a square of side `cutout` around a pixel that is uniform over the image, so that the square may
      hang over the border. Source: DeVries, Taylor 2017, arXiv:1708.04552; they blank with the mean colour,
      here the square is black like the padding. In pixels of the result.

    What happens to an image depends on (seed, view, row) alone: not on the other images of the batch, their order,
    or the device.

    Args:
        images: [M, H, W, 3] uint8, contiguous, all images of the set.
        rows: [N] int64, which of them.
        config: Which changes.
        seed: Of the run.
        view: Which of the endlessly many views; an epoch's number.
        image_size: Side S of the result, in pixels.

    Returns:
        [N, 3, S, S] float32, 0..1, channels last in memory.
    """
    if config.crop_padding or config.horizontal_flip:
        pixels = _cropped_and_flipped(images, rows, config, seed, view)
    else:
        pixels = images[rows]
    result = unit_images(pixels, image_size)
    if config.cutout:
        centre_y = below(draws(seed, view, rows, Stream.CUTOUT_Y), image_size)
        centre_x = below(draws(seed, view, rows, Stream.CUTOUT_X), image_size)
        side = torch.full_like(rows, config.cutout)
        result = result * _outside_square(centre_y, centre_x, side, image_size)
    return result


def mix(
    images: Tensor,
    rows: Tensor,
    pool: Tensor,
    *,
    config: AugmentConfig,
    seed: int,
    view: int,
    image_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One view of some images, each mixed with a partner by mixup or cutmix.

    Mixup: x = lambda * x_own + (1 - lambda) * x_partner, lambda ~ Beta(alpha, alpha); labels are mixed likewise.
    Source: Zhang and others 2018, arXiv:1710.09412.

    CutMix: a square with a share 1 - lambda of the area, around a pixel that is uniform over the image, is the
    partner's; labels are mixed by the area that it really covers inside the image. Source: Yun and others 2019,
    arXiv:1905.04899.

    With both switched on each image takes one or the other, with probability 1/2. The partner is any image of the
    training set, not of the batch as in the papers, and both are augmented as `augment` does in the same view: so an
    image's result does not depend on its batch. Lambda is drawn from 4,096 quantiles of its distribution.

    Args:
        images: [M, H, W, 3] uint8, contiguous, all images of the set.
        rows: [N] int64, which images.
        pool: [K] int64, rows of the training set, from which partners are taken.
        config: Which changes; mixup, cutmix or both are on.
        seed: Of the run.
        view: An epoch's number.
        image_size: Side S of the result, in pixels.

    Returns:
        images [N, 3, S, S] float32, 0..1; partners [N] int64, rows of `images`; and [N] float32, the share 0..1 that
        the image's own label has of the mixed one, the rest being its partner's.
    """
    partners = pool[below(draws(seed, view, rows, Stream.PARTNER), len(pool))]
    both = augment(images, torch.cat([rows, partners]), config=config, seed=seed, view=view, image_size=image_size)
    own, other = both.chunk(2)
    weights = own_weights(rows, config=config, seed=seed, view=view, image_size=image_size)
    return torch.lerp(other, own, weights), partners, weights.mean(dim=(1, 2, 3))


def own_weights(rows: Tensor, *, config: AugmentConfig, seed: int, view: int, image_size: int) -> Tensor:
    """How much of each pixel is the image's own when it is mixed; the rest is its partner's.

    Args:
        rows: [N] int64, which images.
        config: Mixup, cutmix or both are on.
        seed: Of the run.
        view: An epoch's number.
        image_size: Side S, in pixels.

    Returns:
        [N, 1, S, S] float32, 0..1: one value an image for mixup, zeros and ones for cutmix.
    """
    place = below(draws(seed, view, rows, Stream.LAMBDA), _NUM_QUANTILES)
    if config.mixup:
        lambdas = _beta_quantiles(config.mixup, rows.device)[place]
        blended = lambdas[:, None, None, None].expand(-1, 1, image_size, image_size)
    if config.cutmix:
        lambdas = _beta_quantiles(config.cutmix, rows.device)[place]
        side = (image_size * (1.0 - lambdas).sqrt()).to(torch.int64)
        centre_y = below(draws(seed, view, rows, Stream.BOX_Y), image_size)
        centre_x = below(draws(seed, view, rows, Stream.BOX_X), image_size)
        cut = _outside_square(centre_y, centre_x, side, image_size)
    if config.mixup and config.cutmix:
        takes_cut = below(draws(seed, view, rows, Stream.MIXUP_OR_CUTMIX), 2).bool()
        return torch.where(takes_cut[:, None, None, None], cut, blended)
    return blended if config.mixup else cut


def unit_images(pixels: Tensor, image_size: int) -> Tensor:
    """Stored pixels as the input of a model.

    Args:
        pixels: [N, H, W, 3] uint8.
        image_size: Side S of the result; bilinear with antialiasing where H is another.

    Returns:
        [N, 3, S, S] float32, 0..1, channels last in memory.
    """
    images = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    if images.shape[-1] == image_size:
        return images
    size = (image_size, image_size)
    resized = F.interpolate(images, size=size, mode="bilinear", antialias=True)
    # Weights of the filter add up to 1 only to rounding.
    return resized.clamp_(0.0, 1.0).contiguous(memory_format=torch.channels_last)


def _cropped_and_flipped(images: Tensor, rows: Tensor, config: AugmentConfig, seed: int, view: int) -> Tensor:
    """[N, H, W, 3] uint8, each pixel fetched once from where crop and flip together take it."""
    _, height, width, _ = images.shape
    padding = config.crop_padding
    shift_y = below(draws(seed, view, rows, Stream.CROP_Y), 2 * padding + 1) - padding
    shift_x = below(draws(seed, view, rows, Stream.CROP_X), 2 * padding + 1) - padding
    x = torch.arange(width, device=rows.device).expand(len(rows), width)
    if config.horizontal_flip:
        flips = below(draws(seed, view, rows, Stream.FLIP), 2).bool()
        x = torch.where(flips[:, None], width - 1 - x, x)
    x = x + shift_x[:, None]  # [N, W]
    y = torch.arange(height, device=rows.device) + shift_y[:, None]  # [N, H]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    line = rows[:, None] * height + y.clamp(0, height - 1)
    flat = line[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]  # [N, H, W]
    pixels = images.view(-1, 3).index_select(0, flat.view(-1)).view(len(rows), height, width, 3)
    return pixels * inside[..., None]


def _outside_square(centre_y: Tensor, centre_x: Tensor, side: Tensor, image_size: int) -> Tensor:
    """[N, 1, S, S] float32: 0 inside a square of the given side around the centre, 1 elsewhere."""
    place = torch.arange(image_size, device=side.device)
    top, left = centre_y - side // 2, centre_x - side // 2
    in_y = (place >= top[:, None]) & (place < (top + side)[:, None])
    in_x = (place >= left[:, None]) & (place < (left + side)[:, None])
    return (~(in_y[:, None, :, None] & in_x[:, None, None, :])).to(torch.float32)


@lru_cache(maxsize=16)
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """[4096] quantiles of Beta(alpha, alpha), made once: a table gives the same lambda on every device."""
    from scipy.special import betaincinv

    middles = (torch.arange(_NUM_QUANTILES, dtype=torch.float64) + 0.5) / _NUM_QUANTILES
    quantiles = betaincinv(alpha, alpha, middles.numpy())
    return torch.from_numpy(quantiles).to(device, torch.float32)
