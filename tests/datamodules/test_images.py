import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.errors import DataError
from datamodules.images import normalize, read_image, resize, scale

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FORMATS = ("png", "jpg", "gif", "webp", "bmp")
LOSSLESS: dict[str, dict[str, Any]] = {"png": {}, "gif": {}, "webp": {"lossless": True}, "bmp": {}}


def picture(height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Smooth, unlike its mirror images, and of few enough colours for a palette."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 8 // height * 32, columns * 8 // width * 32, rows * 4 // height * 60], axis=-1)
    return pixels.astype(np.uint8)


def png_of_size(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("ending", "options"), LOSSLESS.items())
def test_a_lossless_file_is_read_to_the_bit(ending: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    Image.fromarray(picture()).save(path, **options)
    image = read_image(path)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_lossy_file_is_read_closely(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    Image.fromarray(picture()).save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - picture()).mean() < 8


def test_the_content_decides_the_format_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(picture()).save(path, "png")
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_images_get_three_equal_channels(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "grey.png")
    expected = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_opaque_images_of_other_modes_keep_their_colours(mode: str, tmp_path: Path) -> None:
    palette = {"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}
    Image.fromarray(picture()).convert(mode, **palette).save(tmp_path / "picture.png")  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png"), picture())


def test_a_16_bit_image_keeps_its_brightness(tmp_path: Path) -> None:
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png").astype(int)
    assert np.abs(image - (values / 257)[:, :, None]).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (100, 30), (40, 32)])
def test_the_centred_square_is_taken(width: int, height: int, tmp_path: Path) -> None:
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = np.full((height, width, 3), RED, dtype=np.uint8)
    pixels[top : top + side, left : left + side] = picture(side, side)
    Image.fromarray(pixels).save(tmp_path / "long.png")
    Image.fromarray(picture(side, side)).save(tmp_path / "square.png")
    difference = read_image(tmp_path / "long.png").astype(int) - read_image(tmp_path / "square.png")
    assert np.abs(difference[3:-3, 3:-3]).max() <= 1  # at the edges the filter sees a bit of what is cut off


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5), (33, 32), (16, 16)])
def test_an_image_of_any_size_is_resized(width: int, height: int, tmp_path: Path) -> None:
    Image.new("RGB", (width, height), BLUE).save(tmp_path / "blue.png")
    image = read_image(tmp_path / "blue.png")
    assert image.shape == (32, 32, 3)
    assert (image == BLUE).all()


def test_another_size_is_resized_smoothly(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    image = read_image(tmp_path / "noise.png")
    means = noise.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    assert np.corrcoef(image.ravel(), means.ravel())[0, 1] > 0.8  # averaged, not just every eighth pixel
    assert image.std() < 20


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_an_image_that_says_it_is_turned_is_turned_back(ending: str, size: int, tmp_path: Path) -> None:
    pixels = np.full((size, size, 3), RED, dtype=np.uint8)
    pixels[size // 2 :] = BLUE
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: what is on top comes to the right
    Image.fromarray(pixels).save(tmp_path / f"turned.{ending}", exif=exif)
    image = read_image(tmp_path / f"turned.{ending}").astype(int)
    assert np.abs(image[:, 20:] - RED).max() < 30
    assert np.abs(image[:, :12] - BLUE).max() < 30


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert (read_image(tmp_path / "moving.gif") == RED).all()


@pytest.mark.parametrize("content", [b"", b"Dear reader, this is no picture.\n", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_bytes(content)
    with pytest.raises(DataError, match=r"letter\.png: cannot be read as an image"):
        read_image(tmp_path / "letter.png")
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="is a folder; name the images in it"):
        read_image(tmp_path)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_breaks_off_is_named(ending: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    for length in range(0, len(content) * 9 // 10, len(content) // 20):
        cut.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.\w+: cannot be read as an image"):
            read_image(cut)
    if ending == "png":  # which has checksums
        cut.write_bytes(content[: len(content) // 2] + b"\0\xff" + content[len(content) // 2 + 2 :])
        with pytest.raises(DataError, match=r"cut\.png: cannot be read as an image"):
            read_image(cut)


@pytest.mark.parametrize("ending", [*FORMATS, "avif"])
def test_a_damaged_file_is_an_image_or_a_data_error(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"damaged.{ending}"
    try:
        Image.fromarray(picture()).save(path)
    except (KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {ending}")
    content, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[random.integers(len(content) if random.random() < 0.5 else 100)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            shape = read_image(path).shape
        except DataError:
            continue
        assert shape == (32, 32, 3)


def test_a_file_of_a_kind_that_pillow_knows_but_does_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texture.dds"
    Image.fromarray(picture()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:80] + bytes(4) + content[84:])  # where the format of the pixels stands
    with pytest.raises(DataError, match=r"texture\.dds: cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("side", [10_000, 30_000])  # Pillow warns of the one and fails for the other
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_decompression_bomb_is_refused_whatever_happens_to_warnings(side: int, action: Any, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_size(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(DataError, match=r"bomb\.png: refused"):
            read_image(tmp_path / "bomb.png")


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for path in (first, second):
        Image.fromarray(picture()).save(path)
    began = {path: threading.Event() for path in (first, second)}
    goes_on = {path: threading.Event() for path in (first, second)}
    opened = Image.open

    def open_in_turn(path: Path, *arguments: Any, **options: Any) -> Image.Image:
        began[path].set()
        assert goes_on[path].wait(30)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", open_in_turn)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        futures = {}
        for path in (first, second):
            futures[path] = pool.submit(read_image, path)
            assert began[path].wait(30)
        for path in (first, second):  # the one that began first ends first
            goes_on[path].set()
            futures[path].result()
    assert list(warnings.filters) == before


def test_scale_divides_by_255() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    scaled = scale(images)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, images.float() / 255)
    assert images.dtype == torch.uint8
    assert scaled.max() == 1


@pytest.mark.parametrize("size", [8, 24, 32, 48, 64, 224])
def test_resize_is_a_weighting_by_distance(size: int) -> None:
    images = torch.rand(2, 3, 32, 32)
    stretch = max(1.0, 32 / size)
    centres = (torch.arange(size) + 0.5) * 32 / size
    distances = (torch.arange(32) + 0.5 - centres[:, None]).abs() / stretch
    weights = (1 - distances).clamp(min=0)
    weights /= weights.sum(1, keepdim=True)
    assert torch.allclose(resize(images, size), weights @ images @ weights.T, atol=1e-5)
    assert torch.equal(resize(images, 32), images)


def test_normalize_subtracts_the_mean_and_divides_by_the_standard_deviation_of_each_channel() -> None:
    images, mean, std = torch.rand(2, 3, 4, 5), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    normalized = normalize(images, torch.tensor(mean), torch.tensor(std))
    for channel in range(3):
        assert torch.allclose(normalized[:, channel], (images[:, channel] - mean[channel]) / std[channel])
