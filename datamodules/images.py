"""Image files to uint8 arrays, and the arithmetic from uint8 to a network's input."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.errors import DataError

SIZE = 32  # height and width, in pixels, of every image in memory


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file, cut it to a centred square and resize it: uint8 [32, 32, 3], RGB.

    Raises:
        DataError: if the file is missing, is no image, is damaged, or is so large that it may be an attack.
    """
    try:
        with Image.open(path) as file:
            if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{file.width}x{file.height} pixels")
            image = ImageOps.exif_transpose(file)
            if image.mode in ("F", "I"):
                raise ValueError(f"mode {image.mode} has no known range of values; convert it to 8 bits a channel")
            if image.mode.startswith("I;16"):  # Pillow would clip at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name the images in it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: refused: {error}") from error
    except Exception as error:  # Pillow's readers raise almost anything for a damaged file
        raise DataError(f"{path}: cannot be read as an image ({error}); remove or replace the file") from error
    if image.size != (SIZE, SIZE):
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def scale(images: Tensor) -> Tensor:
    """Convert uint8 images [N, 3, H, W] to float32 in [0, 1]."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize float images [N, 3, H, W] to [N, 3, size, size], bilinearly."""
    side = images.shape[-1]
    return images if side == size else F.interpolate(images, (size, size), mode="bilinear", antialias=size < side)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the channels' means [3] from float images [N, 3, H, W] and divide by the standard deviations [3]."""
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
