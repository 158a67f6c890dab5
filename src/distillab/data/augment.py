"""Random changes of training images, in batches, where the images are: a pure function of (seed, view, image)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distillab.data.config import AugmentConfig
from distillab.data.hashing import Stream, all_draws, below, draws

_NUM_QUANTILES = 4096


class Augmentation:
    """Random crop and flip, resize, cutout, mixup and cutmix.

    What happens to an image depends on (seed, view, row) alone: not on the other images of the batch, their order,
    or the device. Every method is a device function of its tensors with shapes that do not depend on their values,
    so a CUDA graph can hold it; the view may be a number or a [] int64 tensor on the device.

    Attributes:
        mixes: Each image is mixed with a partner.

    Args:
        config: Which changes.
        seed: Of the run.
        image_size: Side S of the results, in pixels.
        device: Where images are changed.
    """

    def __init__(self, config: AugmentConfig, *, seed: int, image_size: int, device: torch.device) -> None:
        self.mixes = bool(config.mixup or config.cutmix)
        self._config = config
        self._seed = seed
        self._image_size = image_size
        # Owned here, made once: a captured graph reads them where they lie.
        self._mixup_lambdas = _beta_quantiles(config.mixup, device)
        self._cutmix_lambdas = _beta_quantiles(config.cutmix, device)

    def __call__(self, pixels: Tensor, rows: Tensor, view: int | Tensor) -> Tensor:
        """One view of some images: all changes that concern an image alone.

        - Crop: pad with `crop_padding` zeros on each side, cut the original size at a place that is uniform over
          the (2 * padding + 1)^2 possible ones. In pixels of the stored images.
        - Flip: mirror left and right with probability 1/2, after the crop.
        - Resize to S, bilinearly with antialiasing, where the stored images have another size.
        - Cutout: blank a square of side `cutout` around a pixel that is uniform over the image, so that the square
          may hang over the border. Source: DeVries, Taylor 2017, arXiv:1708.04552; they blank with the mean colour,
          here the square is black like the padding. In pixels of the result.

        Args:
            pixels: [N, H, H, 3] uint8, the images.
            rows: [N] int64, their rows in the set, which the random numbers depend on.
            view: Which of the endlessly many views; an epoch's number.

        Returns:
            [N, 3, S, S] float32, 0..1, channels last in memory.
        """
        config, size = self._config, self._image_size
        bits = all_draws(self._seed, view, rows)
        if config.crop_padding or config.horizontal_flip:
            pixels = _cropped_and_flipped(pixels, bits, config)
        images = unit_images(pixels, size)
        if config.cutout:
            centre_y, centre_x = below(bits[Stream.CUTOUT_Y], size), below(bits[Stream.CUTOUT_X], size)
            square = _square(centre_y, centre_x, torch.full_like(rows, config.cutout), size)
            images.addcmul_(images, square, value=-1.0)
        return images

    def with_partners(self, rows: Tensor, pool: Tensor, view: int | Tensor) -> Tensor:
        """The images that a batch is made of.

        A partner is any image of the training set, not of the batch as in the papers: so an image's result does not
        depend on its batch.

        Args:
            rows: [N] int64, rows of the images.
            pool: [K] int64, rows of the training set, from which partners are taken.
            view: An epoch's number.

        Returns:
            [2N] int64, the rows and then those of their partners; `rows` alone, [N], where nothing is mixed.
        """
        if not self.mixes:
            return rows
        partners = pool[below(draws(self._seed, view, rows, Stream.PARTNER), len(pool))]
        return torch.cat([rows, partners])

    def mix(self, images: Tensor, rows: Tensor, view: int | Tensor) -> tuple[Tensor, Tensor]:
        """Each image mixed with its partner by mixup or cutmix.

        Mixup: x = lambda * x_own + (1 - lambda) * x_partner, lambda ~ Beta(alpha, alpha); labels are mixed likewise.
        Source: Zhang and others 2018, arXiv:1710.09412.

        CutMix: a square with a share 1 - lambda of the area, around a pixel that is uniform over the image, is the
        partner's; labels are mixed by the area that it really covers inside the image. Source: Yun and others 2019,
        arXiv:1905.04899.

        With both switched on each image takes one or the other, with probability 1/2. Lambda is drawn from 4,096
        quantiles of its distribution.

        Args:
            images: [2N, 3, S, S] float32: views of the images, then those of their partners in the same view.
            rows: [N] int64, rows of the images without their partners.
            view: An epoch's number.

        Returns:
            images [N, 3, S, S] float32, 0..1, channels last in memory; and [N] float32, the share 0..1 that the
            image's own label has of the mixed one, the rest being its partner's.
        """
        own, partners = images.chunk(2)
        weights, share = self.own_weights(rows, view)
        return torch.lerp(partners, own, weights), share

    def own_weights(self, rows: Tensor, view: int | Tensor) -> tuple[Tensor, Tensor]:
        """How much of each pixel is the image's own when it is mixed; the rest is its partner's.

        Args:
            rows: [N] int64, which images.
            view: An epoch's number.

        Returns:
            [N, 3, S, S] float32, 0..1: one value an image for mixup, zeros and ones for cutmix; and [N] float32,
            its mean over each image.
        """
        size = self._image_size
        bits = all_draws(self._seed, view, rows)
        place = below(bits[Stream.LAMBDA], _NUM_QUANTILES)
        outside = self._mixup_lambdas[place]
        if not self._config.cutmix:
            return outside[:, None, None, None].expand(-1, 3, size, size), outside
        side = (size * (1.0 - self._cutmix_lambdas[place]).sqrt()).to(torch.int64)
        if self._config.mixup:
            is_cut = below(bits[Stream.MIXUP_OR_CUTMIX], 2).bool()
            side, outside = torch.where(is_cut, side, 0), torch.where(is_cut, 1.0, outside)
        square = _square(below(bits[Stream.BOX_Y], size), below(bits[Stream.BOX_X], size), side, size)
        share = outside - square.mean(dim=(1, 2, 3))
        return square.neg_().add_(outside[:, None, None, None]), share


def unit_images(pixels: Tensor, image_size: int) -> Tensor:
    """Stored pixels as the input of a model.

    Args:
        pixels: [N, H, H, 3] uint8, contiguous.
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


def _cropped_and_flipped(pixels: Tensor, bits: Tensor, config: AugmentConfig) -> Tensor:
    """[N, H, H, 3] uint8: each line of a result is one run of bytes out of a padded image or its mirror image."""
    number, size, padding = len(pixels), pixels.shape[1], config.crop_padding
    y = below(bits[Stream.CROP_Y], 2 * padding + 1)
    x = below(bits[Stream.CROP_X], 2 * padding + 1)
    image = torch.arange(number, device=pixels.device)
    faces = [pixels]
    if config.horizontal_flip:
        is_flipped = below(bits[Stream.FLIP], 2)
        # Mirroring a crop is cropping the mirror image, from the other side.
        x = torch.where(is_flipped.bool(), 2 * padding - x, x)
        image = image + number * is_flipped
        faces.append(pixels.flip(2))
    padded_size = size + 2 * padding
    padded = pixels.new_zeros(len(faces) * number, padded_size, padded_size, 3)
    for face, part in zip(faces, padded.chunk(len(faces)), strict=True):
        part[:, padding : padding + size, padding : padding + size] = face
    runs = padded.view(-1).unfold(0, 3 * size, 3)  # [all pixels, 3H]: what starts at each pixel
    line = (image * padded_size + y)[:, None] + torch.arange(size, device=pixels.device)  # [N, H]
    start = line * padded_size + x[:, None]
    return runs.index_select(0, start.view(-1)).view_as(pixels)


def _square(centre_y: Tensor, centre_x: Tensor, side: Tensor, image_size: int) -> Tensor:
    """[N, 3, S, S] float32, channels last: 1 inside a square of the given side around the centre, 0 elsewhere."""
    place = torch.arange(image_size, device=side.device)

    def covered(centre: Tensor) -> Tensor:
        start = (centre - side // 2)[:, None]
        return ((place >= start) & (place < start + side[:, None])).to(torch.float32)  # [N, S]

    lines, columns = covered(centre_y), covered(centre_x)
    # The channels are spread before the product: it then runs over whole lines, ten times faster on a CPU.
    columns = columns[:, :, None].expand(-1, -1, 3).flatten(1)
    square = lines[:, :, None] * columns[:, None, :]
    return square.view(len(side), image_size, image_size, 3).permute(0, 3, 1, 2)


def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """[4096] quantiles of Beta(alpha, alpha): a table gives the same lambda on every device. Ones for alpha 0."""
    if not alpha:
        return torch.ones(_NUM_QUANTILES, device=device)
    from scipy.special import betaincinv

    middles = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    quantiles = betaincinv(alpha, alpha, middles)
    return torch.from_numpy(quantiles).to(device, torch.float32)
