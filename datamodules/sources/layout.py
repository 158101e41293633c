"""What lies in a folder of images, and what to say if the images lie elsewhere."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from shlex import quote

from datamodules.errors import DataError
from datamodules.images import NAMED, is_image, named_as_image
from overfitting_lab.runs.text import escaped, readable

File = os.DirEntry[str]

_LEFT_BY_SYSTEMS = frozenset(
    {"$recycle.bin", "#recycle", "@eadir", "@recycle", "__macosx", "__pycache__", "lost+found"}
    | {"system volume information"}
)
_OTHER_NAMES = {
    "train": ("train", "training", "train_set", "training_set", "trainset"),
    "test": ("test", "testing", "test_set", "testset", "val", "valid", "validation", "eval", "dev"),
}


def listed(names: Iterable[str]) -> str:
    """List the first ten names, and how many more there are. Characters that no screen shows are escaped."""
    ordered = list(map(escaped, sorted(names)))
    return ", ".join(ordered[:NAMED]) + (f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else "")


def entries(folder: Path) -> list[File]:
    """Return what lies in a folder; nothing if there is no such folder.

    Raises:
        DataError: if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}; change its permissions so that you can read it"
        ) from error


def is_file(entry: File) -> bool:
    """Tell if an entry is a file, or a link to one: a link that leads nowhere or to itself is none."""
    with suppress(OSError):
        return entry.is_file()
    return False


def is_folder(entry: File) -> bool:
    """Tell if an entry is a folder, or a link to one: a link that leads nowhere or to itself is none."""
    with suppress(OSError):
        return entry.is_dir()
    return False


def is_class(entry: File) -> bool:
    """Tell if an entry may be the folder of a class: hidden ones and those that systems leave behind are not."""
    return is_folder(entry) and not entry.name.startswith(".") and entry.name.lower() not in _LEFT_BY_SYSTEMS


def natural(name: str) -> list[str | int]:
    """Return a sort key that puts 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def folder_names(folder: Path) -> set[str]:
    """Return the names, in their normal form, of the folders in a folder, hidden ones excepted."""
    return {readable(entry.name) for entry in entries(folder) if is_folder(entry) and not entry.name.startswith(".")}


def class_folders(split: Path) -> dict[str, list[Path]]:
    """Return the folders that may be classes in ``train`` or ``test``, by the normal form of their names."""
    folders: dict[str, list[Path]] = {}
    for entry in filter(is_class, entries(split)):
        folders.setdefault(readable(entry.name), []).append(Path(entry.path))
    return folders


def files(folder: Path, left_out: Counter[str] | None = None) -> Iterator[File]:
    """Yield the files in a folder, and in the folders within it, that may be images.

    Hidden files and folders, and what else is left out, are counted in ``left_out`` by kind.
    """
    folders, seen, left_out = [folder], set[tuple[int, int]](), Counter() if left_out is None else left_out
    while folders:
        path = folders.pop()
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries(path):
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif is_file(entry):
                yield entry
            elif is_class(entry):
                folders.append(Path(entry.path))
            elif is_folder(entry):
                left_out[entry.name] += 1
            elif entry.is_symlink():  # to nothing: an image that cannot be read
                yield entry
            else:
                left_out["neither file nor folder"] += 1


def loose_files(folder: Path) -> list[Path]:
    """Return the files that lie in a folder itself, hidden ones excepted."""
    return [Path(entry.path) for entry in entries(folder) if is_file(entry) and not entry.name.startswith(".")]


def holds_images(folders: Sequence[Path]) -> bool:
    """Tell if an image, readable or not, lies in one of these folders, or in a folder within them."""
    if any(named_as_image(file.name) for folder in folders for file in files(folder)):  # most often the first is
        return True
    return any(is_image(Path(file.path)) for folder in folders for file in files(folder))


def advice(root: Path) -> str:
    """Suggest where the images may be that a folder source lacks in ``root``."""
    near = [*root.absolute().parents[:2], *below(root)]
    if found := next((folder for folder in near if is_root(folder)), None):
        return f"did you mean --data.root {quote(str(found))}?"
    if root.is_file():
        return f"{root} is a file; unpack it if it is an archive, and give --data.root FOLDER"
    if not root.is_dir():
        return f"there is no folder {root}; give --data.root FOLDER"
    names = [entry.name for entry in entries(root) if not entry.name.startswith(".")]
    left_over = (".lock", ".part")
    if "data_batch_1" in names or any(n.startswith("cifar-10-") and not n.endswith(left_over) for n in names):
        parent = root.absolute().parent if "data_batch_1" in names else root
        return f"did you mean --data.source cifar10 --data.root {quote(str(parent))}?"
    if not names:
        return f"{root} is empty; give --data.root FOLDER"
    folders = [name for name in names if (root / name).is_dir()]
    for split, others in _OTHER_NAMES.items():
        other = [name for name in folders if name.lower() in others]
        if split not in names and other:
            return f"{root} has the folder {other[0]}: rename it to {split}"
    classes = [name for name, paths in class_folders(root).items() if name not in _OTHER_NAMES and holds_images(paths)]
    if classes:
        return (
            f"{root} holds the folders of images {listed(classes)}: move a part of each to train/<class>, "
            "the rest to test/<class>"
        )
    return f"{root} holds {listed(names)}; give --data.root FOLDER"


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that another spelling of it most likely means; ``None`` if there is none."""
    by_case = {known.strip().casefold(): known for known in names}
    matches = get_close_matches(name.strip().casefold(), by_case, n=1, cutoff=0.8)
    return by_case[matches[0]] if matches else None


def is_root(folder: Path) -> bool:
    """Tell if a folder source could read images from this folder."""
    return all(class_folders(folder / split) for split in ("train", "test"))


def below(folder: Path, levels: int = 2) -> Iterator[Path]:
    """Yield folders below a folder, at most 100 in each; those that cannot be read hold none."""
    with suppress(DataError):
        for entry in islice(filter(is_class, entries(folder)), 100):
            yield Path(entry.path)
            if levels > 1:
                yield from below(Path(entry.path), levels - 1)
