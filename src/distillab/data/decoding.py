"""Image files of any kind as square RGB arrays."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from distillab.errors import DataError
from distillab.runtime.device import usable_cores

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# By content, whatever the name says. Pillow knows more, among them one that has another program interpret the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_CONVERTIBLE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_FILES_PER_TASK = 64


def decode_images(paths: Sequence[Path | str], images: NDArray[np.uint8]) -> None:
    """Decode image files into an array, on all processors.

    Args:
        paths: [N] files, each decoded as `decode_image` does.
        images: [N, S, S, 3] uint8, which is filled.

    Raises:
        DataError: An image cannot be read; of several, the first is named.
    """

    def decode(start: int) -> None:
        for position in range(start, min(start + _FILES_PER_TASK, len(paths))):
            images[position] = decode_image(paths[position], images.shape[1])

    with warnings.catch_warnings(), ThreadPoolExecutor(usable_cores()) as pool:
        # What Pillow warns of is either read all the same, such as damaged EXIF, or refused below: too many pixels.
        warnings.simplefilter("ignore")
        tasks = [pool.submit(decode, start) for start in range(0, len(paths), _FILES_PER_TASK)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def decode_image(path: Path | str, image_size: int) -> NDArray[np.uint8]:
    """Pixels of an image file: its central square, scaled to the size of a model's input.

    The square as long as the shorter side is cut from the middle and scaled with a bicubic filter that covers
    all the pixels it merges (antialiasing); a square of the right size keeps its pixels. Before that, the
    orientation in EXIF is applied, greyscale and palettes become RGB, CMYK is converted, 16 bits are scaled to 8
    (v / 257, rounded), and what is transparent is laid upon white. Of an animation the first frame is taken.

    Args:
        path: The file.
        image_size: Side S of the result, in pixels.

    Returns:
        [S, S, 3] uint8, RGB.

    Raises:
        DataError: The file is missing, corrupt, larger than Pillow's limit, or of a kind without a clear meaning.
    """
    image = _rgb(_read(path), path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box))


def size_of(path: Path | str) -> tuple[int, int] | None:
    """Width and height that an image file says it has, in pixels; None where it cannot be read. Decodes nothing."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
            return image.size
    except Exception:  # whatever it is, decoding the file tells it
        return None


def _read(path: Path | str) -> Image.Image:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError("it is a folder or a special file")
        with Image.open(path, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except FileNotFoundError:
        raise DataError("there is no such image", where=_shown(path), hint="check the path") from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"the image is too large to be decoded safely: {error}", where=_shown(path), hint="make it smaller"
        ) from error
    # On altered files Pillow's readers raise nearly any kind of error.
    except Exception as error:
        raise DataError(
            f"the image cannot be read: {_reason(error)}", where=_shown(path), hint="replace or delete the file"
        ) from error


def _rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"pixels run from {values.min()} to {values.max()}",
                where=_shown(path),
                hint="8 or 16 bits a channel are needed",
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode not in _CONVERTIBLE:
        raise DataError(
            f"pixels of kind '{image.mode}' have no clear meaning as a picture",
            where=_shown(path),
            hint="save it as an RGB PNG",
        )
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _shown(path: Path | str) -> str:
    # Names that are no valid text must not break the message that names them.
    return str(path).encode("utf-8", "backslashreplace").decode()
