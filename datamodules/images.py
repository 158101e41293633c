"""Read image files as uint8 arrays."""

import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.errors import DataError

SIZE = 32  # height and width, in pixels, of every image in memory
NAMED = 10  # files that a message names at most

_ENDINGS = frozenset(  # of files that a viewer shows, whether Pillow reads them or not
    {".apng", ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".cur", ".dcm", ".dds", ".dib", ".dng", ".emf", ".eps", ".exr"}
    | {".gif", ".heic", ".heif", ".hif", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"}
    | {".jxl", ".mpo", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".raf", ".ras"}
    | {".rw2", ".sgi", ".svg", ".tga", ".tif", ".tiff", ".webp", ".wmf", ".xbm", ".xpm"}
)
# Pillow knows these formats and does not decode them. EPS is a program, which Pillow has Ghostscript execute.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

_UPRIGHT = {  # what turns an image upright, by its orientation in EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableError(DataError):
    """An image file cannot be read."""

    def __init__(self, path: Path, reason: str, message: str) -> None:
        super().__init__(f"{path}{message}")
        self.path = path
        self.reason = reason  # in a few words


class ReadImages(NamedTuple):
    """The images of several files."""

    images: NDArray[np.uint8]  # [N, 32, 32, 3], RGB
    indices: list[int]  # each image's index among the files
    transparent: int  # number of images that were laid on white
    unreadable: list[UnreadableError]  # one a file


def named_as_image(name: str) -> bool:
    """Tell if a file's name ends as the names of images do."""
    return Path(name).suffix.lower() in _ENDINGS


def is_image(path: Path) -> bool:
    """Tell if a file is an image, readable or not: by the ending of its name, or else by its content."""
    if named_as_image(path.name):
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(path, formats=_formats(any_name=True)).close()
        except Exception:  # Pillow's readers raise almost anything
            return False
    return True


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as a viewer shows it, cut it to a centred square and resize it: uint8 [32, 32, 3], RGB.

    The image is upright and, if it is transparent, laid on white. An animation gives its first frame. Broken metadata
    is ignored.

    Raises:
        UnreadableError: if the file is missing, is no image, is damaged, or is so large that it may be an attack.
    """
    return _read(path)[0]


def read_images(
    paths: Sequence[Path],
    *,
    skip_others: bool = False,
    tracked: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> ReadImages:
    """Read image files on all cores; see :func:`read_image`.

    Args:
        paths: of the files.
        skip_others: leave files out that are no images, see :func:`is_image`.
        tracked: wraps the results, one a file, to show the progress.
    """
    images = np.empty((len(paths), SIZE, SIZE, 3), dtype=np.uint8)
    indices, unreadable, transparent = list[int](), list[UnreadableError](), 0

    def attempt(path: Path) -> tuple[NDArray[np.uint8], bool] | UnreadableError:
        try:
            return _read(path)
        except UnreadableError as error:
            return error

    # One thread alone may change the filters of warnings. Pillow's warnings are about metadata that is not used here.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        try:
            for index, result in enumerate(tracked(pool.map(attempt, paths))):
                if isinstance(result, UnreadableError):
                    if not skip_others or is_image(result.path):
                        unreadable.append(result)
                else:
                    images[len(indices)], laid_on_white = result
                    indices.append(index)
                    transparent += laid_on_white
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return ReadImages(images[: len(indices)], indices, transparent, unreadable)


def refuse(unreadable: Sequence[UnreadableError], root: Path | None = None) -> None:
    """Raise an error about files that cannot be read, if there are any.

    Raises:
        UnreadableError: about one file.
        DataError: about several files. It names the first ten, and how many there are. A folder ``root`` in which they
            lie is named once.
    """
    if len(unreadable) == 1:
        raise unreadable[0]
    if not unreadable:
        return
    if root is None:
        try:
            root = Path(os.path.commonpath([error.path.parent for error in unreadable]))
        except ValueError:  # some are absolute, some are not
            root = Path()
    named = [error.path for error in unreadable[:NAMED]]
    listed = ", ".join(str(path.relative_to(root) if root in path.parents else path) for path in named)
    more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    where = f" in {root}" if root != Path() else ""
    raise DataError(
        f"{len(unreadable)} files{where} cannot be read as images: {listed}{more}; "
        f"the first: {unreadable[0].reason}. Remove or replace them"
    )


def read_batch(paths: Sequence[Path]) -> Tensor:
    """Read image files as uint8 [N, 3, 32, 32], and print how many were laid on white because they are transparent.

    Raises:
        DataError: if some cannot be read.
    """
    read = read_images(paths)
    refuse(read.unreadable)
    if read.transparent:
        print(f"{read.transparent} of {len(paths)} images are transparent in part: they are laid on white")
    return torch.from_numpy(read.images).permute(0, 3, 1, 2)


def _read(path: Path) -> tuple[NDArray[np.uint8], bool]:
    """Read an image file; tell also if the image was laid on white."""
    try:
        try:
            return _decode(path)
        except Exception as error:
            if not (bare := _without_metadata(path)):
                raise
            try:
                return _decode(io.BytesIO(bare))
            except Exception:
                raise error from None
    except FileNotFoundError:
        raise UnreadableError(path, "no such file", ": no such file") from None
    except IsADirectoryError:
        raise UnreadableError(path, "a folder", " is a folder; name the images in it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(path, f"refused: {error}", f": refused: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything for a damaged file
        reason = _reason(path, error)
        advice = "remove or replace the file"
        raise UnreadableError(path, reason, f": cannot be read as an image ({reason}); {advice}") from error


def _decode(source: Path | io.BytesIO) -> tuple[NDArray[np.uint8], bool]:
    with Image.open(source, formats=_formats()) as file:
        if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{file.width}x{file.height} pixels")
        with _SILENCE if file.format == "TIFF" else nullcontext():
            file.load()
        image = _of_8_bits(file)
        if (turn := _turn(file)) is not None:
            image = image.transpose(turn)
        transparent = False
        if image.has_transparency_data:
            image = image.convert("RGBA")
            transparent = bool(np.asarray(image)[:, :, 3].min() < 255)
            if transparent:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image), transparent


class _Silence:
    """Keep off the screen what libtiff writes to standard error about a damaged file. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads = 0
        self._standard_error: int | None = None  # where it went before

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                with suppress(OSError):  # standard error may be closed
                    self._standard_error = os.dup(2)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, 2)
                    os.close(nowhere)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads and self._standard_error is not None:
                os.dup2(self._standard_error, 2)
                os.close(self._standard_error)
                self._standard_error = None


_SILENCE = _Silence()


@cache
def _formats(any_name: bool = False) -> list[str]:
    """Return the formats that Pillow decodes, the most frequent first and those that any bytes may be last.

    With ``any_name``, leave the latter out.
    """
    Image.init()
    known = [name for name in Image.ID if name not in _NOT_DECODED]
    known.sort(key=lambda name: (name not in ("JPEG", "PNG"), not Image.OPEN[name][1], name))
    return [name for name in known if Image.OPEN[name][1]] if any_name else known


def _of_8_bits(file: Image.Image) -> Image.Image:
    """Return a grey image of 9 to 16 bits with 8 bits, and any other image as it is.

    Raises:
        ValueError: if nothing tells which values are black and white.
    """
    if file.mode == "F" or (file.mode == "I" and file.format != "PPM"):
        raise ValueError(f"mode {file.mode} has no known range of values; convert it to 8 bits a channel")
    if file.mode != "I" and not file.mode.startswith("I;16"):
        return file
    values, tags = np.asarray(file).astype(np.uint32), getattr(file, "tag_v2", {})
    highest = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample of TIFF
    grey = (values.clip(max=highest) * 255 // highest).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation of TIFF: 0 is white
        grey = 255 - grey
    image = Image.fromarray(grey)
    if (clear := file.info.get("transparency")) is not None:
        image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return image


def _turn(file: Image.Image) -> Image.Transpose | None:
    """Return what turns an image upright."""
    try:
        return _UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata that is broken
        return None


def _without_metadata(path: Path) -> bytes | None:
    """Return a PNG file without the chunks that its pixels do not need; ``None`` if there are none."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, start = [content[:8]], 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind, checked, checksum = content[start + 4 : start + 8], content[start + 4 : end - 4], content[end - 4 : end]
        sound = zlib.crc32(checked).to_bytes(4, "big") == checksum
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and sound):
            kept.append(content[start:end])
        start = end
    bare = b"".join(kept)
    return None if len(bare) == len(content) else bare


def _reason(path: Path, error: Exception) -> str:
    """Say in a few words why a file cannot be read."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror or str(error)
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    with path.open("rb") as file:
        head = file.read(24)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: git lfs pull"
    if head[4:8] == b"ftyp":
        return (
            f"the format is {head[8:12].decode('ascii', 'replace')}, which Pillow does not read: save it as PNG or JPEG"
        )
    return f"it begins with {head!r}"
