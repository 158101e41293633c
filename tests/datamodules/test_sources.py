import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules import CIFAR10DataModule
from datamodules.errors import DataError, UnreachableError
from datamodules.sources import CIFAR10, SOURCES, Folder, Images, Synthetic, synthetic
from tests.datamodules.conftest import FullDisk, md5

pytestmark = pytest.mark.usefixtures("no_mirror")

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def lay(root: Path, *files: str) -> Path:
    """Images of one colour, which is the number in the file's name; all of one size in bytes."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (int(Path(file).stem), 0, 0)).save(root / file, "bmp")
    return root


def prepared(root: Path) -> Images:
    source = Folder(root)
    source.prepare()
    return source.load()


def colours(images: torch.Tensor) -> list[int]:
    return images[:, 5, 7, 0].tolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay(tmp_path / "animals", "train/dog/1.png", "train/cat/2.png", "train/dog/3.png", "test/cat/4.png")


def made(root: Path) -> tuple[int, int]:
    """Identify the prepared arrays, and the time of their last change."""
    stat = (Folder(root).cache / "meta.json").stat()
    return stat.st_ino, stat.st_mtime_ns


def test_a_folders_images_stand_in_the_order_of_their_names_whatever_the_class(root: Path) -> None:
    images = prepared(root)
    assert images.name == "animals"
    assert images.classes == ("cat", "dog")
    assert colours(images.train_images) == [1, 2, 3]
    assert images.train_labels.tolist() == [1, 0, 1]
    assert colours(images.test_images) == [4]
    assert images.test_labels.tolist() == [0]
    assert images.train_images.shape == (3, 32, 32, 3)
    assert images.train_images.dtype == images.test_images.dtype == torch.uint8
    assert images.train_labels.dtype == images.test_labels.dtype == torch.int64


def test_one_name_in_two_classes_comes_in_the_order_of_the_classes(tmp_path: Path) -> None:
    images = prepared(lay(tmp_path / "x", "train/b/1.png", "train/a/1.png", "test/a/2.png"))
    assert images.train_labels.tolist() == [0, 1]


@pytest.mark.parametrize("number", [2, 3, 12])
def test_a_folder_has_as_many_classes_as_it_has(number: int, tmp_path: Path) -> None:
    files = [f"train/class{label:02}/{label:02}.png" for label in range(number)]
    images = prepared(lay(tmp_path / "x", *files, "test/class00/0.png"))
    assert images.classes == tuple(f"class{label:02}" for label in range(number))
    assert images.train_labels.tolist() == list(range(number))


def test_a_class_may_lack_test_images(root: Path) -> None:
    assert prepared(lay(root, "train/zebra/5.png")).classes == ("cat", "dog", "zebra")


def test_the_classes_are_known_before_anything_is_decoded(root: Path) -> None:
    assert Folder(root).classes == ("cat", "dog")
    assert not Folder(root).cache.exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_hidden_files_and_folders_are_ignored(split: str, root: Path) -> None:
    for name in ("train/dog/.DS_Store", "train/.hidden", "test/cat/._4.png", "train/notes.txt"):
        (root / name).write_text("no image")
    (root / split / ".ipynb_checkpoints").mkdir()
    images = prepared(root)
    assert colours(images.train_images) == [1, 2, 3]
    assert images.classes == ("cat", "dog")


@pytest.mark.parametrize("spelled", ["animals", "./animals/../animals", "link", "."])
def test_a_folder_is_decoded_once_however_its_path_is_spelled(
    spelled: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, then = prepared(root), made(root)
    monkeypatch.chdir(root if spelled == "." else root.parent)
    (root.parent / "link").symlink_to(root)
    second = prepared(Path(spelled))
    assert made(root) == then
    assert second.identity == first.identity
    assert torch.equal(second.train_images, first.train_images)


def change(root: Path) -> None:
    Image.new("RGB", (32, 32), (200, 0, 0)).save(root / "train/dog/1.png", "bmp")  # of the same size
    os.utime(root / "train/dog/1.png", ns=(1, 1))


@pytest.mark.parametrize(
    ("alter", "expected", "labels"),
    [
        (change, [200, 2, 3], [1, 0, 1]),
        (lambda root: lay(root, "train/cat/0.png"), [0, 1, 2, 3], [0, 1, 0, 1]),
        (lambda root: (root / "train/dog/3.png").unlink(), [1, 2], [1, 0]),
        (lambda root: (root / "train/dog/3.png").rename(root / "train/cat/3.png"), [1, 2, 3], [1, 0, 0]),
        (lambda root: lay(root, "train/ant/5.png"), [1, 2, 3, 5], [2, 1, 2, 0]),
    ],
    ids=["change", "add", "remove", "relabel", "add class"],
)
def test_a_folder_that_changed_is_decoded_again(
    alter: Callable[[Path], object], expected: list[int], labels: list[int], root: Path
) -> None:
    identity = prepared(root).identity
    alter(root)
    images = prepared(root)
    assert colours(images.train_images) == expected
    assert images.train_labels.tolist() == labels
    assert images.identity != identity


def test_what_is_loaded_stays_when_the_folder_is_decoded_again(root: Path) -> None:
    before = prepared(root)
    change(root)
    prepared(root)
    assert colours(before.train_images) == [1, 2, 3]


def test_identity_is_that_of_the_content(root: Path, tmp_path: Path) -> None:
    other = lay(tmp_path / "other", "train/dog/1.png", "train/cat/2.png", "train/dog/3.png", "test/cat/4.png")
    assert prepared(other).identity == prepared(root).identity


def test_the_prepared_arrays_lie_beside_the_folder_and_leave_it_as_it_is(root: Path) -> None:
    before = sorted(root.rglob("*"))
    prepared(root)
    assert sorted(root.rglob("*")) == before
    around = {path.name for path in root.parent.iterdir()}
    assert around <= {"animals", ".animals.prepared", ".animals.prepared.lock"}


def test_where_the_parent_may_not_be_written_to_the_arrays_lie_in_the_working_directory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root.parent and access(path, mode))
    assert colours(prepared(root).train_images) == [1, 2, 3]
    assert not (root.parent / ".animals.prepared").exists()
    (cache,) = (path for path in (work / "data/prepared").iterdir() if path.is_dir())
    assert cache.name.startswith("animals-")
    then = made(root)
    prepared(root)
    assert made(root) == then


def test_folders_of_one_name_do_not_share_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert Folder(tmp_path / "a/x").cache != Folder(tmp_path / "b/x").cache


@pytest.mark.parametrize("key", SOURCES)
def test_a_read_only_folder_of_data_serves_every_source(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    assert SOURCES[key](tmp_path / "shared").cache.is_relative_to("data/prepared")
    assert SOURCES[key](tmp_path / "shared").cache != SOURCES[key](tmp_path / "other").cache


def test_arrays_that_are_up_to_date_need_no_leave_to_write(root: Path) -> None:
    prepared(root)
    lock = root.with_name(".animals.prepared.lock")
    lock.unlink()
    lock.mkdir()  # nobody gets this lock
    assert colours(prepared(root).train_images) == [1, 2, 3]
    change(root)
    with pytest.raises(DataError, match=r"cannot keep .*\.animals\.prepared: .*; make the folder"):
        prepared(root)


def test_arrays_that_cannot_be_kept_are_a_data_error(root: Path, full_disk: FullDisk) -> None:
    with full_disk(1000), pytest.raises(DataError, match=r"cannot keep .*\.animals\.prepared: .*; make the folder"):
        Folder(root).prepare()
    assert {path.name for path in root.parent.iterdir()} <= {"animals", ".animals.prepared.lock"}


# What lies among images


def account(root: Path) -> Any:
    return json.loads((Folder(root).cache / "meta.json").read_text())["read"]


JUNK = (
    *("train/dog/Thumbs.db", "train/dog/desktop.ini", "train/cat/labels.csv", "test/cat/Icon\r", "test/notes.txt"),
    *("train/cat/film.mp4", "train/cat/measured.h5", "train/cat/1.png:Zone.Identifier", "train/tables/all.csv"),
)


def test_what_is_no_image_and_no_class_is_left_out_and_said_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in JUNK:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\x89HDF\r\n\x1a\n" if name.endswith("h5") else b"no image")
    for name in ("train/New folder", "test/New folder", "train/dog/empty", "val", "__MACOSX", "train/dog/x.png"):
        (root / name).mkdir()
    for system in ("train/@eaDir", "train/dog/@eaDir"):  # thumbnails of a NAS
        lay(root, f"{system}/1.png/7.png")
    lay(root, "train/8.png")
    (root / "train/dog/.DS_Store").touch()
    images = prepared(root)
    assert images.classes == ("cat", "dog")
    assert colours(images.train_images) == [1, 2, 3]
    assert colours(images.test_images) == [4]
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "read       animals: 3 training and 1 test images of 2 classes, 0 unreadable, values from 0 to 4",
        "not read: 1 images in train or test, but outside of any class",
        "left out, as they are no images: 1 .csv, 1 .db, 1 .h5, 1 .identifier, 1 .ini, 1 .mp4, 1 .txt, 1 @eaDir, "
        "1 Icon\\r, 1 hidden",
        "not used as classes, because they contain no images: @eaDir, New folder, tables",
        "not read: val beside train and test",
    ]
    assert account(root) == {
        "images": {"train": 3, "test": 1},
        "classes": 2,
        "values": [0, 4],
        "unreadable": 0,
        "transparent": 0,
        "deeper": 0,
        "outside": 1,
        "left_out": dict.fromkeys((".db", ".ini", ".csv", "Icon\r", ".txt", ".mp4", ".h5", ".identifier"), 1)
        | {"hidden": 1, "@eaDir": 1},
        "folders_without_images": ["@eaDir", "New folder", "tables"],
        "folders_not_read": ["val"],
    }
    prepared(root)
    assert capsys.readouterr().out == ""


def test_images_in_deeper_folders_are_found_and_a_link_to_a_folder_above_ends(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(root, "train/dog/more/5.png", "train/dog/more/still/6.png", "test/cat/images/7.png")
    (root / "train/dog/more/up").symlink_to(root / "train/dog")
    lay(root.parent, "elsewhere/8.png")
    (root / "train/cow").symlink_to(root.parent / "elsewhere")
    images = prepared(root)
    assert images.classes == ("cat", "cow", "dog")
    assert colours(images.train_images) == [1, 2, 3, 5, 6, 8]
    assert images.train_labels.tolist() == [2, 0, 2, 2, 2, 1]
    assert colours(images.test_images) == [4, 7]
    assert "3 images lie in folders within the folder of their class" in capsys.readouterr().out


def test_content_tells_an_image_whatever_its_name(root: Path) -> None:
    for number, name in enumerate(("train/dog/photo.txt", "train/ant/photo", "test/ant/download.aspx"), start=5):
        lay(root, f"{number}.png")
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{number}.png").rename(root / name)
    images = prepared(root)
    assert images.classes == ("ant", "cat", "dog")
    assert sorted(colours(images.train_images)) == [1, 2, 3, 5, 6]


def test_a_name_has_one_form_whatever_the_system_wrote(root: Path) -> None:
    (root / "train/cat").rename(root / "train/caf\u00e9")
    (root / "test/cat").rename(root / "test/cafe\u0301")
    lay(root, "train/cafe\u0301/9.png")
    images = prepared(root)
    assert images.classes == ("caf\u00e9", "dog")
    assert images.train_labels.tolist() == [1, 0, 1, 0]
    assert images.test_labels.tolist() == [0]


def test_a_class_that_only_the_test_has_images_of_is_a_class(root: Path) -> None:
    (root / "train/cat/2.png").unlink()
    images = prepared(root)
    assert images.classes == ("cat", "dog")
    assert images.train_labels.tolist() == [1, 1]


def test_all_unreadable_files_are_named_at_once(root: Path) -> None:
    for number in range(11):
        (root / f"train/dog/{number + 20}.png").write_bytes(b"")
    (root / "test/cat/5.jpg").symlink_to(root / "none/5.jpg")
    (root / "test/cat/6.jpg").symlink_to(root / "test/cat/6.jpg")
    (root / "train/dog/more").symlink_to(root / "train/dog/more")
    with pytest.raises(DataError) as caught:
        Folder(root).prepare()
    named = ", ".join(f"train/dog/{number + 20}.png" for number in range(10))
    assert str(caught.value) == (
        f"13 files in {root} cannot be read as images: {named} and 3 more; the first: the file is empty. "
        "Remove or replace them"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_opened(root: Path) -> None:
    os.mkfifo(root / "train/dog/5.png")
    prepared(root)
    assert account(root)["left_out"] == {"neither file nor folder": 1}


def move(root: Path, *moves: tuple[str, str]) -> Path:
    for source, target in moves:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(root / target)
    return root


def emptied(root: Path) -> Path:
    shutil.rmtree(root)
    root.mkdir()
    return root


ELSEWHERE: dict[str, tuple[Callable[[Path], object], str, str]] = {  # what was done, the root typed, the message
    "above": (lambda root: None, "..", r"there is.*|did you mean --data\.root .*animals\?"),
    "far above": (lambda root: move(root.parent, ("animals", "a/b/animals")), "../a", r"--data\.root .*a/b/animals\?"),
    "train": (lambda root: None, "train", r"did you mean --data\.root .*animals\?"),
    "class": (lambda root: None, "train/cat", r"did you mean --data\.root .*animals\?"),
    "other name": (lambda root: move(root, ("test", "valid")), "", "has the folder valid: rename it to test"),
    "capital": (lambda root: move(root, ("train", "Train")), "", "has the folder Train: rename it to train"),
    "no split": (lambda root: move(root, ("train/cat", "cat"), ("train/dog", "dog"), ("train", "x"), ("test", "y")), "",
                 "holds the folders of images cat, dog, y: move a part of each to train/<class>"),
    "twice": (lambda root: move(root, ("train", "x"), ("x", "train/train")), "",
              "has one class, train: .*; if the classes are the folders in it, move them up: cat, dog"),
    "flat": (lambda root: move(root, ("test/cat/4.png", "test/4.png")), "", "1 images lie in .*test itself, outside"),
    "archives": (lambda root: lay(emptied(root), "1.png", "2.png").joinpath("2.png").rename(root / "train.zip"), "",
                 r"animals holds 1\.png, train\.zip"),
    "file": (lambda root: None, "train/cat/2.png", "2.png is a file"),
    "empty": (lambda root: emptied(root), "", "animals is empty"),
    "spelled": (lambda root: move(root, ("test/cat", "test/Cat")), "",
                "classes that train lacks: Cat; train has cat: rename one of the two"),
    "CIFAR-10": (lambda root: lay(emptied(root), "cifar-10-batches-py/1.png"), "",
                 r"did you mean --data\.source cifar10 --data\.root .*animals\?"),
}  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
def test_images_that_lie_elsewhere_are_asked_for(case: str, root: Path) -> None:
    alter, typed, message = ELSEWHERE[case]
    alter(root)
    with pytest.raises(DataError, match=message):
        Folder(Path(os.path.normpath(root / typed))).prepare()


# What is computed from the arrays

TABLE = torch.arange(9.0).reshape(3, 3) / 7


@pytest.fixture
def computed() -> list[int]:
    """Grows with each computation."""
    return []


@pytest.fixture
def load(root: Path, computed: list[int]) -> Callable[..., None]:
    """Loads the table, or computes it, for a folder that is prepared."""
    prepared(root)

    def compute() -> Tensor:
        computed.append(1)
        return TABLE

    def load(name: str = "one") -> None:
        loaded = Folder(root).load_or_compute(name, compute)
        assert torch.equal(loaded, TABLE)
        assert loaded.dtype == torch.float32

    return load


def kept(root: Path, name: str = "one") -> list[str]:
    return [path.name for path in Folder(root).cache.iterdir() if name in path.name]


def test_what_was_computed_is_loaded_by_its_name(load: Callable[..., None], root: Path, computed: list[int]) -> None:
    load()
    load()
    assert len(computed) == 1
    load("other")
    assert len(computed) == 2
    assert kept(root) == ["one.npy"]
    assert kept(root, "other") == ["other.npy"]
    then = made(root)
    prepared(root)
    assert made(root) == then, "the arrays themselves are still up to date"
    change(root)
    prepared(root)
    load()
    assert len(computed) == 3, "it is of arrays that are no longer there"


@pytest.mark.parametrize("content", [b"", b"no array", "half"])
def test_what_is_damaged_is_computed_again(
    content: bytes | str, load: Callable[..., None], root: Path, computed: list[int]
) -> None:
    load()
    path = Folder(root).cache / "one.npy"
    path.write_bytes(path.read_bytes()[:-9] if isinstance(content, str) else content)
    load()
    load()
    assert len(computed) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"{}"])
def test_a_damaged_note_about_the_arrays_has_them_made_anew(content: bytes, root: Path) -> None:
    source = Folder(root)
    source.prepare()
    note = source.cache / "meta.json"
    sound = note.read_bytes()
    note.write_bytes(content)
    source.prepare()
    assert note.read_bytes() == sound


def test_what_cannot_be_written_is_computed_every_time(
    load: Callable[..., None], root: Path, computed: list[int], full_disk: FullDisk
) -> None:
    with full_disk(100):
        load()
        load()
    assert len(computed) == 2
    assert not kept(root)
    shutil.rmtree(Folder(root).cache)
    load()
    assert len(computed) == 3


def test_a_process_that_dies_while_it_writes_leaves_no_half_of_a_file(
    load: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path, *arguments: Any, **options: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", die)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert not kept(root)


def test_several_processes_that_compute_at_once_leave_a_whole_file(load: Callable[..., None], root: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: load(), range(200)))
    assert kept(root) == ["one.npy"]


@pytest.mark.parametrize("damage", ["", "{"])
def test_arrays_that_are_missing_or_were_left_half_written_are_made(damage: str, root: Path) -> None:
    with pytest.raises(DataError, match=r"call prepare_data\(\) first"):
        Folder(root).load()
    prepared(root)
    (Folder(root).cache / "meta.json").write_text(damage)
    with pytest.raises(DataError, match="holds no prepared images"):
        Folder(root).load()
    assert colours(prepared(root).train_images) == [1, 2, 3]


TWO = "it needs a folder for each class, two or more"
NEEDS = r"a folder source needs train/<class>/\* and test/<class>/\*"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), rf"train holds no folder of images; {NEEDS}"),
        (("train/1.png", "test/cat/1.png"), "train holds no folder of images"),
        (
            ("train/cat/1.png", "test/cat/1.png"),
            f"train has one class, cat: {TWO}",
        ),
        (("train/cat/1.png", "train/dog/1.png"), rf"test is missing; {NEEDS}"),
        (("train/cat/1.png", "train/dog/1.png", "test/cow/1.png", "test/ant/1.png"), "train lacks: ant, cow"),
        (("train/cat/1.png", "train/dog/1.png", "test/1.png"), "test holds no images"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        Folder(lay(tmp_path / "x", *files)).prepare()


def test_a_folder_of_empty_classes_is_refused(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="train holds no images"):
        Folder(root).prepare()


@pytest.mark.parametrize("before", [False, True])
def test_an_unreadable_image_is_named_and_only_arrays_that_were_there_are_kept(before: bool, root: Path) -> None:
    if before:
        prepared(root)
    (root / "train/dog/bad.png").write_text("no image")
    with pytest.raises(DataError, match=r"train/dog/bad\.png: cannot be read as an image"):
        Folder(root).prepare()
    if before:
        (root / "train/dog/bad.png").unlink()
        assert colours(Folder(root).load().train_images) == [1, 2, 3]
    else:
        assert {path.name for path in root.parent.iterdir()} <= {"animals", ".animals.prepared.lock"}


# CIFAR-10, as small as it can be: each file of the archive has three images.


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def archive(contents: dict[str, Any]) -> bytes:
    """The archive of these files' pickled contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            body = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def unpack(body: bytes, root: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and earlier have none
        tar.extractall(root)


BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


@pytest.fixture
def contents() -> dict[str, Any]:
    random = np.random.default_rng(0)
    files: dict[str, Any] = {
        name: {"data": random.integers(0, 256, (3, 3072), np.uint8), "labels": random.integers(0, 10, 3).tolist()}
        for name in BATCHES
    }
    return files | {"batches.meta": {"label_names": list(NAMES)}}


@pytest.fixture
def genuine(contents: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The archive of these contents, for once the one whose checksums are right."""
    sums = {name: md5(pickle.dumps(content, protocol=2)) for name, content in contents.items()}
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(dataset, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": sums["batches.meta"]})
    body = archive(contents)
    monkeypatch.setattr(CIFAR10, "MD5", md5(body))
    return body


def expected_pixels(contents: dict[str, Any], *names: str) -> NDArray[np.uint8]:
    """The images as the CIFAR-10 page says: the red plane row by row, then green, then blue."""
    rows = np.concatenate([contents[name]["data"] for name in names])
    images = np.empty((len(rows), 32, 32, 3), dtype=np.uint8)
    for row in range(32):
        for channel in range(3):
            start = 1024 * channel + 32 * row
            images[:, row, :, channel] = rows[:, start : start + 32]
    return images


def test_cifar10_is_read_from_the_archive(genuine: bytes, contents: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(genuine)
    source = CIFAR10(tmp_path)
    assert source.present()
    source.prepare()
    images = source.load()
    assert images.name == "CIFAR-10"
    assert images.classes == NAMES
    np.testing.assert_array_equal(images.train_images, expected_pixels(contents, *BATCHES[:5]))
    np.testing.assert_array_equal(images.test_images, expected_pixels(contents, "test_batch"))
    assert images.train_labels.tolist() == [label for name in BATCHES[:5] for label in contents[name]["labels"]]
    assert images.test_labels.tolist() == contents["test_batch"]["labels"]
    assert images.train_images.dtype == torch.uint8
    assert images.train_labels.dtype == torch.int64


def test_cifar10_that_torchvision_unpacked_is_read_and_once_prepared_needs_nothing_else(
    genuine: bytes, tmp_path: Path
) -> None:
    unpack(genuine, tmp_path)
    for _ in ("unpacked", "prepared"):
        source = CIFAR10(tmp_path)
        assert source.present()
        source.prepare()
        assert len(source.load().train_labels) == 15
        shutil.rmtree(tmp_path / "cifar-10-batches-py", ignore_errors=True)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_an_archive_cannot_write_outside_its_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        if kind == "link":
            link = tarfile.TarInfo("cifar-10-batches-py")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
        name = {"parent": "../../outside", "absolute": str(outside), "link": "cifar-10-batches-py/outside"}[kind]
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"bad"))
    (root / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue())
    monkeypatch.setattr(CIFAR10, "MD5", md5(buffer.getvalue()))
    with pytest.raises(DataError, match=r"cannot be unpacked|cannot keep"):
        CIFAR10(root).prepare()
    assert not outside.exists()


@pytest.mark.usefixtures("genuine")
def test_a_wrong_archive_is_refused_and_not_unpacked(contents: dict[str, Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    wrong = archive(dict.fromkeys(contents, Bomb(trace)))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(wrong)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz") as caught:
        CIFAR10(tmp_path).prepare()
    assert not isinstance(caught.value, UnreachableError)
    assert not (tmp_path / "cifar-10-batches-py").exists()
    assert not trace.exists()
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == wrong  # it may be somebody's own


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_a_file_that_is_missing_or_changed_is_refused_and_not_unpickled(
    name: str, missing: bool, genuine: bytes, tmp_path: Path
) -> None:
    unpack(genuine, tmp_path)
    path, trace = tmp_path / "cifar-10-batches-py" / name, tmp_path / "trace"
    path.unlink()
    if not missing:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(DataError, match="cifar-10-batches-py is incomplete or damaged; delete it"):
        CIFAR10(tmp_path).prepare()
    assert not trace.exists()
    assert not CIFAR10(tmp_path).cache.exists()


def test_cifar10_that_is_nowhere_is_unreachable(tmp_path: Path) -> None:
    source = CIFAR10(tmp_path / "data")
    assert not source.present()
    assert source.classes == NAMES
    with pytest.raises(UnreachableError, match=r"No mirror delivers the file"):
        source.prepare()
    assert not source.present()


def test_an_archive_that_a_tool_decompressed_is_read(genuine: bytes, contents: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar").write_bytes(gzip.decompress(genuine))
    source = CIFAR10(tmp_path)
    assert source.present()
    source.prepare()
    np.testing.assert_array_equal(source.load().test_images, expected_pixels(contents, "test_batch"))


def test_a_wrong_archive_that_a_tool_decompressed_is_not_unpickled(contents: dict[str, Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    wrong = archive(dict.fromkeys(contents, Bomb(trace)))
    (tmp_path / "cifar-10-python.tar").write_bytes(gzip.decompress(wrong))
    with pytest.raises(DataError, match=r"incomplete or damaged; delete it and .*cifar-10-python\.tar; the next"):
        CIFAR10(tmp_path).prepare()
    assert not trace.exists()


NEAR = {  # what lies where, the root typed, the question
    "below": ("a/cifar-10-batches-py/data_batch_1", "", "did you mean --data.root {}/a?"),
    "far below": ("a/b/cifar-10-python.tar.gz", "", "did you mean --data.root {}/a/b?"),
    "within": ("a/cifar-10-batches-py/data_batch_1", "a/cifar-10-batches-py", "did you mean --data.root {}/a?"),
    "beside": ("cifar-10-batches-py/data_batch_1", "data", "did you mean --data.root {}?"),
    "the archive itself": ("cifar-10-python.tar.gz", "cifar-10-python.tar.gz", "did you mean --data.root {}?"),
    "by the archive's name": (
        *("cifar-10-python/cifar-10-batches-py/data_batch_1", ""),
        "did you mean --data.root {}/cifar-10-python?",
    ),
    "twice": (
        *("cifar-10-batches-py/cifar-10-batches-py/data_batch_1", ""),
        "did you mean --data.root {}/cifar-10-batches-py?",
    ),
    "renamed": ("batches/data_batch_1", "", "rename {}/batches to cifar-10-batches-py, and give --data.root {}"),
    "a second download": ("cifar-10-python (1).tar.gz", "", "{}/cifar-10-python (1).tar.gz is not read: rename it"),
    "for C": ("cifar-10-batches-bin/data_batch_1.bin", "", "{}/cifar-10-batches-bin is not read"),
    "zipped": ("cifar-10-python.zip", "", "{}/cifar-10-python.zip is not read: rename it"),
    "for Matlab": ("cifar-10-batches-mat/data_batch_1.mat", "", "{}/cifar-10-batches-mat is not read"),
    "of Kaggle": ("train.7z", "", "{}/train.7z is not read"),
    "of Kaggle, unpacked": ("trainLabels.csv", "", "{}/trainLabels.csv is not read"),
    "in capitals": ("CIFAR-10-batches-py/data_batch_1", "", "rename {}/CIFAR-10-batches-py to cifar-10-batches-py"),
    "a folder": ("train/cat/1.png", "", "did you mean --data.source folder --data.root {}?"),
    "another folder": ("cifar10/train/cat/1.png", "", "{}/cifar10 is not read: rename it to cifar-10-batches-py"),
}


@pytest.mark.parametrize("name", ["cifar10", "cifar10-jpeg", "CIFAR-10-images"])
def test_a_folder_of_images_in_the_usual_place_is_asked_for(name: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        lay(tmp_path, f"{name}/{split}/cat/1.png")
    with pytest.raises(DataError) as caught:
        CIFAR10DataModule(root=str(tmp_path), stand_in=True).prepare_data()
    assert f"did you mean --data.source folder --data.root {tmp_path / name}?" in str(caught.value)


def test_what_a_broken_download_leaves_is_no_cifar10(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz.lock").touch()
    with pytest.raises(DataError) as caught:
        CIFAR10DataModule(source="folder", root=str(tmp_path)).prepare_data()
    assert "--data.source cifar10" not in str(caught.value)


@pytest.mark.parametrize("case", NEAR)
def test_cifar10_that_lies_elsewhere_is_asked_for_before_any_drawn_images(case: str, tmp_path: Path) -> None:
    file, typed, question = NEAR[case]
    root = tmp_path / "with space"
    lay(root, "test/cat/1.png") if case == "a folder" else root.mkdir()
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).touch()
    data = CIFAR10DataModule(root=str(root / typed), stand_in=True)
    with pytest.raises(DataError) as caught:
        data.prepare_data()
    quoted = question.replace("--data.root {}", "--data.root '{}").replace("?", "'?")
    quoted = quoted if quoted.endswith("?") or "--data.root" not in quoted else quoted + "'"
    assert f"CIFAR-10 is not in {root / typed}" in str(caught.value)
    assert quoted.replace("{}", str(root)) in str(caught.value)


def test_labels_out_of_range_are_refused(
    contents: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    contents["data_batch_3"]["labels"][1] = 10
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(request.getfixturevalue("genuine"))
    source = CIFAR10(tmp_path)
    with pytest.raises(DataError, match=r"labels run from \d to 10, but there are 10 classes \(0 to 9\)"):
        source.prepare()
    assert not source.cache.exists()


def test_the_stand_in_draws_one_sequence_of_60_000_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def draw(seed: int, first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        calls.append((seed, first, count))
        return np.zeros((count, 2, 2, 3), dtype=np.uint8), np.arange(first, first + count) % 10

    monkeypatch.setattr(synthetic, "draw", draw)
    source = Synthetic(tmp_path)
    source.prepare()
    images = source.load()
    assert calls == [(0, 0, 50_000), (0, 50_000, 10_000)]
    assert images.classes == synthetic.CLASSES
    assert "not CIFAR-10" in images.name
    assert images.train_images.shape == (50_000, 2, 2, 3)
    assert images.test_images.shape == (10_000, 2, 2, 3)
    assert images.train_images.dtype == images.test_images.dtype == torch.uint8
    assert images.train_labels.dtype == images.test_labels.dtype == torch.int64
    assert images.test_labels.tolist() == list(range(10)) * 1000
    source.prepare()
    assert len(calls) == 2  # drawn once
