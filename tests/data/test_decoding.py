import numpy as np
import pytest
from PIL import Image

from distillab.data.decoding import decode_image, decode_images
from distillab.errors import DataError


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = noise(8, 8)
    assert np.array_equal(decode_image(saved(tmp_path, pixels), 8), pixels)


@pytest.mark.parametrize("shape", [(8, 13), (13, 8), (8, 9)])
def test_of_a_longer_image_the_middle_is_cut(tmp_path, shape):
    pixels = noise(*shape)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    assert np.array_equal(decode_image(saved(tmp_path, pixels), 8), pixels[top : top + 8, left : left + 8])


def test_large_images_are_shrunk_with_antialiasing(tmp_path):
    # Stripes one pixel wide: sampling would give black or white, averaging gives grey.
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    shrunk = decode_image(saved(tmp_path, stripes), 8)
    assert shrunk.shape == (8, 8, 3)
    assert abs(shrunk[2:-2, 2:-2].astype(int) - 127.5).max() < 3


def test_small_images_are_enlarged_smoothly(tmp_path):
    assert decode_image(saved(tmp_path, np.full((2, 3, 3), 77, np.uint8)), 8).tolist() == [[[77] * 3] * 8] * 8


def test_extreme_shapes_work(tmp_path):
    assert decode_image(saved(tmp_path, noise(1, 5000)), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_greyscale_becomes_three_equal_channels(tmp_path, mode):
    grey = Image.fromarray(noise(8, 8, 1)).convert(mode)
    expected = np.asarray(grey.convert("L"))
    assert np.array_equal(decode_image(saved(tmp_path, grey), 8), np.stack([expected] * 3, axis=2))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = saved(tmp_path, Image.fromarray(values))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(decode_image(path, 8), np.stack([expected] * 3, axis=2))


def test_a_palette_becomes_its_colours(tmp_path):
    pixels = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)[np.arange(64) % 4]
    palette = Image.fromarray(pixels.reshape(8, 8, 3)).quantize(4)
    assert palette.mode == "P"
    assert np.array_equal(decode_image(saved(tmp_path, palette), 8), pixels.reshape(8, 8, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (8, 8))
        image.putpalette([10, 10, 10, 200, 200, 200])
        image.putpixel((0, 0), 1)
        path = saved(tmp_path, image, transparency=0)
    else:
        image = Image.new(mode, (8, 8), (10,) * (len(mode) - 1) + (0,))
        image.putpixel((0, 0), (200,) * (len(mode) - 1) + (255,))
        path = saved(tmp_path, image)
    expected = np.full((8, 8, 3), 255)
    expected[0, 0] = 200
    assert np.array_equal(decode_image(path, 8), expected)


def test_half_transparent_is_half_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    # v * 128/255 + 255 * 127/255
    assert abs(decode_image(saved(tmp_path, image), 4)[0, 0].astype(int) - [127, 177, 227]).max() <= 1


def test_cmyk_is_converted(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "image.jpg", quality=100)
    assert abs(decode_image(path, 8)[4, 4].astype(int) - [0, 255, 255]).max() <= 3


def test_orientation_of_exif_is_applied(tmp_path):
    pixels = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn clockwise by a quarter
    path = saved(tmp_path, pixels, exif=exif)
    assert np.array_equal(decode_image(path, 8), np.rot90(pixels, -1))


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("L", (8, 8), shade) for shade in (40, 200)]
    path = saved(tmp_path, frames[0], "image.gif", save_all=True, append_images=frames[1:])
    assert (decode_image(path, 8) == 40).all()


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "webp", "tiff", "ppm"])
def test_a_cut_file_is_named(tmp_path, extension):
    path = saved(tmp_path, noise(64, 64), f"image.{extension}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match="cannot be read") as caught:
        decode_image(path, 8)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        decode_image(path, 8)


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_altered_files_are_decoded_or_named_and_nothing_else(tmp_path, extension):
    generator = np.random.default_rng(0)
    good = saved(tmp_path, noise(16, 16), f"good.{extension}").read_bytes()
    path = tmp_path / f"altered.{extension}"
    outcomes = set()
    for _ in range(80):
        content = bytearray(good)
        for place in generator.integers(0, min(len(good), 200), 3):
            content[place] = generator.integers(0, 256)
        path.write_bytes(content)
        try:
            outcomes.add(decode_image(path, 8).shape)
        except DataError as error:
            outcomes.add(error.where)
    assert outcomes <= {(8, 8, 3), str(path)}
    assert str(path) in outcomes


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such image"):
        decode_image(tmp_path / "none.png", 8)


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(tmp_path, Image.new("F", (8, 8), 0.5), "image.tiff")
    with pytest.raises(DataError, match="'F'"):
        decode_image(path, 8)


@pytest.mark.parametrize("limit", [50, 40, 20])
def test_images_beyond_the_limit_of_pillow_are_refused(tmp_path, monkeypatch, limit):
    # 64 pixels: between the limit and twice that Pillow itself would only warn.
    path = saved(tmp_path, noise(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="too large"):
        decode_images([path], np.empty((1, 8, 8, 3), np.uint8))


def test_many_images_are_decoded_in_their_order(tmp_path):
    pixels = [noise(8, 8, seed=seed) for seed in range(150)]
    paths = [saved(tmp_path, one, f"{number}.png") for number, one in enumerate(pixels)]
    images = np.empty((150, 8, 8, 3), np.uint8)
    decode_images(paths, images)
    assert np.array_equal(images, np.stack(pixels))


def test_of_several_corrupt_images_the_first_is_named(tmp_path):
    paths = [saved(tmp_path, noise(8, 8), f"{number}.png") for number in range(200)]
    for number in (5, 6, 150):
        paths[number].write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        decode_images(paths, np.empty((200, 8, 8, 3), np.uint8))
    assert caught.value.where == str(paths[5])
