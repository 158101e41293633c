"""Spoiled image files: each is read as a viewer shows it, or named. A seed makes each file again."""

import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from datamodules.errors import DataError
from datamodules.images import read_images
from datamodules.sources import Folder
from tests.conftest import FinishedRun, Script
from tests.scripts.test_errors import check_one_message

Random = np.random.Generator

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {  # ending: mode, options
    "png": ("RGB", {}),
    "apng": ("RGB", {"format": "png", "save_all": True}),
    "gif": ("P", {"save_all": True}),
    "jpg": ("RGB", {}),
    "jpeg": ("CMYK", {"progressive": True}),
    "webp": ("RGB", {}),
    "bmp": ("RGB", {}),
    "tif": ("RGB", {}),
    "tiff": ("RGB", {"compression": "tiff_lzw"}),
    "ppm": ("RGB", {}),
    "tga": ("RGBA", {"compression": "tga_rle"}),
    "ico": ("RGBA", {}),
    "pcx": ("RGB", {}),
    "sgi": ("RGB", {}),
    "dds": ("RGB", {}),
    "jp2": ("RGB", {}),
    "mpo": ("RGB", {"save_all": True}),
    "icns": ("RGBA", {}),
    "xbm": ("1", {}),
    "la.png": ("LA", {}),
    "deep.png": ("I;16", {}),
}


@cache
def sound(ending: str) -> bytes:
    """A file of this format with a picture, metadata and, if it may have one, a second frame."""
    mode, options = FORMATS[ending]
    rows, columns = np.mgrid[:30, :40]
    pixels = np.stack([rows * 8, columns * 6, (rows * columns) % 256], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    image = Image.fromarray(pixels[:, :, 2].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[:, :, 0]))
    options = {"format": Image.registered_extensions()[f".{ending.split('.')[-1]}"], **options}
    if options.get("save_all"):
        options["append_images"] = [image.rotate(180)]
    if options["format"] in ("JPEG", "PNG", "WEBP", "TIFF"):
        tags = Image.Exif()
        tags[0x0112], tags[0x010F] = 6, "Maker"
        options["exif"] = tags
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def cut(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def cut_within_the_header(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(min(128, len(content))))]


def cut_at_the_end(content: bytes, random: Random) -> bytes:
    return content[: -int(random.integers(1, 12))]


def flip(content: bytes, random: Random, among: int | None = None) -> bytes:
    changed = bytearray(content)
    for place in random.integers(min(among or len(content), len(content)), size=random.integers(1, 9)):
        changed[place] = random.integers(256)
    return bytes(changed)


def flip_within_the_header(content: bytes, random: Random) -> bytes:
    return flip(content, random, among=128)


def empty_a_block(content: bytes, random: Random) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + bytes(len(content[start : start + 64])) + content[start + 64 :]


def insert(content: bytes, random: Random) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + random.bytes(int(random.integers(1, 64))) + content[start:]


def drop(content: bytes, random: Random) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + content[start + int(random.integers(1, 64)) :]


SPOILS: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(cut, cut_within_the_header, cut_at_the_end),
    *(flip, flip_within_the_header, empty_a_block, insert, drop),
)


def spoil(seed: int, folder: Path) -> Path:
    random = np.random.default_rng(seed)
    ending = tuple(FORMATS)[seed % len(FORMATS)]
    path = folder / f"{seed:05}.{ending}"
    path.write_bytes(SPOILS[random.integers(len(SPOILS))](sound(ending), random))
    return path


def shown(path: Path, *, upright: bool = True) -> NDArray[np.uint8]:
    """What a viewer on top of Pillow shows, laid on white paper. Metadata are read only if it is ``upright``."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file) if upright else file
        if image.mode == "I;16":
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        layer = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(layer, mask=layer)
        return np.asarray(ImageOps.fit(paper, (32, 32), Image.Resampling.BICUBIC))


def shown_without_metadata(path: Path, folder: Path) -> tuple[NDArray[np.uint8], ...]:
    """What that viewer shows if the metadata are spoiled: the pixels, turned by the orientation or as they are.

    Pixels may be spoiled as well, without an error: the pixels of this file are shown, unless Pillow needs the metadata
    to find them. Then they are those of the file before it was spoiled, which the ``folder`` gets.
    """
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # Pillow then skips the checksums of metadata
        pixels = shown(path, upright=False)
    except Exception:
        ending = path.name.split(".", 1)[1]
        (whole := folder / f"whole.{ending}").write_bytes(sound(ending))
        pixels = shown(whole, upright=False)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return np.rot90(pixels, -1), pixels


def check_readings(paths: list[Path], unspoiled: Path) -> set[Path]:
    """Compare what is read with what a viewer shows; return the files that cannot be read."""
    read = read_images(paths)
    unreadable = {error.path for error in read.unreadable}
    assert len(read.indices) + len(read.unreadable) == len(paths)
    for error in read.unreadable:
        assert str(error).startswith(str(error.path))
    for image, index in zip(read.images, read.indices, strict=True):
        try:
            expected: tuple[NDArray[np.uint8], ...] = (shown(paths[index]),)
        except Exception:  # of Pillow's readers, for metadata that are spoiled
            expected = shown_without_metadata(paths[index], unspoiled)
        assert min(np.abs(image.astype(int) - each).max() for each in expected) <= 2, paths[index].name
    return unreadable


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_500_spoiled_files_are_read_as_a_viewer_shows_them_or_named_in_one_message(
    run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(image_folder, tmp_path / "spoiled"))
    paths = [spoil(seed, root / "train" / "cat") for seed in range(500)]
    bad = check_readings(paths, tmp_path)
    assert 100 < len(bad) < 450, "some of both, or nothing is tested"

    with pytest.raises(DataError, match=rf"^{len(bad)} files in {root} cannot be read as images: train/cat/0"):
        Folder(root).prepare()
    outcome = run_script("predict", finished_run.folder, *paths)
    check_one_message(outcome, 1)
    assert f"{len(bad)} files in {root / 'train' / 'cat'} cannot be read as images: " in outcome.err
    assert f" and {len(bad) - 10} more; the first: " in outcome.err

    for path in bad:
        path.unlink()
    Folder(root).prepare()
    assert len(Folder(root).load().train_labels) == 180 + 500 - len(bad)
    outcome = run_script("predict", finished_run.folder, *sorted(set(paths) - bad)[:5])
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("thousand", range(1, 21))
def test_20_000_more(thousand: int, tmp_path: Path) -> None:
    folder = tmp_path / "spoiled"
    folder.mkdir()
    check_readings([spoil(1000 * thousand + seed, folder) for seed in range(1000)], tmp_path)
