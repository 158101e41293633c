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
from datamodules.images import read_image, read_images, refuse
from datamodules.pixels import normalize, resize, scale

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FORMATS = ("png", "jpg", "gif", "webp", "bmp")
LOSSLESS: dict[str, dict[str, Any]] = {"png": {}, "gif": {}, "webp": {"lossless": True}, "bmp": {}}


def picture(height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Smooth, unlike its mirror images, and of few enough colours for a palette."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 8 // height * 32, columns * 8 // width * 32, rows * 4 // height * 60], axis=-1)
    return pixels.astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is a huge picture."""
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


# What the eye sees

ORIENTATION = struct.pack("<HHII", 0x0112, 3, 1, 6)  # to be turned clockwise by a quarter


def halves(mode: str = "RGB") -> Image.Image:
    """Red above blue."""
    pixels = np.full((32, 32, 3), RED, dtype=np.uint8)
    pixels[16:] = BLUE
    return Image.fromarray(pixels).convert(mode)


def exif(*fields: bytes, rest: bytes = b"") -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4) + rest


def seen(path: Path) -> tuple[NDArray[np.uint8], int]:
    """The pixels of a file, and how many images were laid on white, whatever Pillow warns of."""
    read = read_images([path])
    refuse(read.unreadable)
    return read.images[0], read.transparent


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int, tmp_path: Path) -> None:
    undo: Any = {
        1: lambda pixels: pixels,
        2: np.fliplr,
        3: lambda pixels: np.rot90(pixels, 2),
        4: np.flipud,
        5: lambda pixels: pixels.transpose(1, 0, 2),
        6: lambda pixels: np.rot90(pixels, -1),
        7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    tags = Image.Exif()
    tags[0x0112] = orientation
    for name in ("stored.png", "stored.tif"):
        Image.fromarray(picture()).save(tmp_path / name, exif=tags)
        np.testing.assert_array_equal(read_image(tmp_path / name), undo[orientation](picture()))
    deep = picture()[:, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=tags)
    expected = np.stack([picture()[:, :, 0]] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), undo[orientation](expected))


BROKEN_EXIF = {
    "resolution -1/0": exif(ORIENTATION, struct.pack("<HHII", 0x011A, 10, 1, 38), rest=struct.pack("<ii", -1, 0)),
    "text beyond the end": exif(ORIENTATION, struct.pack("<HHII", 0x010F, 2, 4000, 5000)),
    "position beyond the end": exif(ORIENTATION, struct.pack("<HHII", 0x8825, 4, 1, 9999)),
    "orientation of 4 bytes": exif(struct.pack("<HHII", 0x0112, 4, 1, 6)),
}


@pytest.mark.parametrize("fault", BROKEN_EXIF)
def test_broken_metadata_is_ignored_and_the_orientation_counts(fault: str, tmp_path: Path) -> None:
    halves().save(tmp_path / "photo.jpg", quality=95, exif=BROKEN_EXIF[fault])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = seen(tmp_path / "photo.jpg")[0].astype(int)
    assert np.abs(image[:, 20:] - RED).max() < 30
    assert np.abs(image[:, :12] - BLUE).max() < 30


@pytest.mark.parametrize("content", [b"Exif\0\0" + b"\xff" * 40, exif(struct.pack("<HHII", 0x0112, 3, 1, 99))])
def test_an_orientation_without_meaning_is_none(content: bytes, tmp_path: Path) -> None:
    halves().save(tmp_path / "photo.jpg", quality=95, exif=content)
    assert np.abs(seen(tmp_path / "photo.jpg")[0][:12].astype(int) - RED).max() < 30


BROKEN_CHUNKS = {
    "long text": chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(3 << 20))),
    "long profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20))),
    "profile that is none": chunk(b"iCCP", b"x\0\0garbage"),
    "wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
    "cut resolution": chunk(b"pHYs", b"ab"),
}


@pytest.mark.parametrize("fault", BROKEN_CHUNKS)
def test_what_a_png_says_beside_its_pixels_may_be_broken(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    halves().save(path, transparency=BLUE)
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(b"eXIf", exif(ORIENTATION)[6:]) + BROKEN_CHUNKS[fault] + content[33:])
    image, transparent = seen(path)
    assert (image[:, 16:] == RED).all()
    assert (image[:, :16] == 255).all()
    assert transparent == 1


def transparent_files() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """Images that are red, black or dark below, and transparent above."""
    alpha = Image.new("L", (32, 32), 0)
    alpha.paste(255, (0, 16, 32, 32))
    clear = {}
    for mode in ("RGB", "L"):
        clear[mode] = halves(mode)
        clear[mode].putalpha(alpha)
    palette = halves().quantize(2)
    above: Any = palette.getpixel((0, 0))
    deep = np.full((32, 32), 257, dtype=np.uint16)
    deep[:16] = 5
    some = bytearray(b"\xff\xff")
    some[above] = 0
    return {
        "rgba.png": (clear["RGB"], {}),
        "la.png": (clear["L"], {}),
        "rgba.webp": (clear["RGB"], {"lossless": True}),
        "rgba.tif": (clear["RGB"], {}),
        "rgba.tga": (clear["RGB"], {}),
        "rgba.ico": (clear["RGB"], {"sizes": [(32, 32)]}),
        "rgb colour.png": (halves(), {"transparency": RED}),
        "grey value.png": (halves("L"), {"transparency": halves("L").getpixel((0, 0))}),
        "palette index.png": (palette, {"transparency": above}),
        "palette values.png": (palette, {"transparency": bytes(some)}),
        "palette index.gif": (palette, {"transparency": above}),
        "16 bits.png": (Image.fromarray(deep), {"transparency": 5}),
        "1 bit.png": (halves("L").point(lambda value: 255 * (value < 50), mode="1"), {"transparency": 0}),
    }


@pytest.mark.parametrize("name", transparent_files())
def test_what_is_transparent_is_white(name: str, tmp_path: Path) -> None:
    image, options = transparent_files()[name]
    image.save(tmp_path / name, **options)
    pixels, transparent = seen(tmp_path / name)
    assert (pixels[:16] == 255).all()
    below = {"RGB": BLUE, "P": BLUE, "RGBA": BLUE, "1": (255, 255, 255), "I;16": (1, 1, 1)}
    assert (pixels[16:] == below.get(image.mode, (29, 29, 29))).all()
    assert transparent == 1


def test_half_of_a_colour_is_mixed_with_white_and_an_opaque_image_is_not_transparent(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 128)).save(tmp_path / "veil.png")
    pixels, transparent = seen(tmp_path / "veil.png")
    assert (pixels == 127).all()
    assert transparent == 1
    halves("RGBA").save(tmp_path / "opaque.png")
    assert seen(tmp_path / "opaque.png")[1] == 0


def tiff(values: bytes, bits: int, photometric: int) -> bytes:
    """A grey image of 32x32 pixels without compression."""
    fields = {256: 32, 257: 32, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 32, 279: len(values)}
    fields[273] = 8 + 2 + 12 * len(fields) + 4
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + table + bytes(4) + values


def packed(values: NDArray[np.int64]) -> bytes:
    """12 bits a value."""
    pairs = values.reshape(-1, 2)
    return b"".join(int(first << 12 | second).to_bytes(3, "big") for first, second in pairs)


RAMP = np.arange(1024).reshape(32, 32)
DEEP = {
    "16 bits.pgm": (b"P5 32 32 65535\n" + (RAMP * 64).astype(">u2").tobytes(), RAMP * 64 / 257),
    "12 bits.pgm": (b"P5 32 32 4095\n" + (RAMP * 4).astype(">u2").tobytes(), RAMP * 4 * 255 / 4095),
    "16 bits.tif": (tiff((RAMP * 64).astype("<u2").tobytes(), 16, 1), RAMP * 64 / 257),
    "16 bits, 0 is white.tif": (tiff((RAMP * 64).astype("<u2").tobytes(), 16, 0), 255 - RAMP * 64 / 257),
    "12 bits.tif": (tiff(packed(RAMP * 4), 12, 1), RAMP * 4 * 255 / 4095),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_keep_their_brightness(name: str, tmp_path: Path) -> None:
    content, expected = DEEP[name]
    (tmp_path / name).write_bytes(content)
    assert np.abs(read_image(tmp_path / name).astype(int) - expected[:, :, None]).max() <= 1


@pytest.mark.parametrize(("name", "mode"), [("print.jpg", "CMYK"), ("print.tif", "CMYK"), ("video.tif", "YCbCr")])
def test_colours_of_other_kinds_are_seen(name: str, mode: str, tmp_path: Path) -> None:
    halves(mode).save(tmp_path / name, quality=95)
    image = read_image(tmp_path / name).astype(int)
    assert np.abs(image[:12] - RED).max() < 12
    assert np.abs(image[20:] - BLUE).max() < 12


@pytest.mark.parametrize("name", ["moving.png", "moving.webp", "pages.tif", "two.mpo"])
def test_the_first_frame_is_seen(name: str, tmp_path: Path) -> None:
    halves().save(tmp_path / name, save_all=True, append_images=[Image.new("RGB", (32, 32), GREEN)], quality=95)
    assert np.abs(read_image(tmp_path / name)[:12].astype(int) - RED).max() < 30


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>Not found</title>", r"it begins with b'<!DOCTYPE html"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS: git lfs pull"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
            "the format is heic, which Pillow does not read: save it as PNG or JPEG",
        ),
    ],
)
def test_the_message_says_what_the_file_is_instead(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"photo\.jpg: cannot be read as an image \({reason}"):
        read_image(tmp_path / "photo.jpg")


def test_the_first_ten_of_many_unreadable_files_are_named(tmp_path: Path) -> None:
    halves().save(tmp_path / "sound.png")
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        path.write_bytes(b"")
    read = read_images([paths[0], tmp_path / "sound.png", *paths[1:]])
    assert read.indices == [1]
    with pytest.raises(DataError) as caught:
        refuse(read.unreadable, tmp_path)
    named = ", ".join(path.name for path in paths[:10])
    assert str(caught.value) == (
        f"12 files in {tmp_path} cannot be read as images: {named} and 2 more; the first: the file is empty. "
        "Remove or replace them"
    )
