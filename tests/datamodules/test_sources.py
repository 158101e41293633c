import io
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


@pytest.mark.parametrize("spelled", ["animals", "./animals/../animals", "link"])
def test_a_folder_is_decoded_once_however_its_path_is_spelled(
    spelled: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, then = prepared(root), made(root)
    monkeypatch.chdir(root.parent)
    Path("link").symlink_to(root)
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
        (lambda root: (root / "train/ant").mkdir(), [1, 2, 3], [2, 1, 2]),
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
        (("train/cat/1.png", "train/dog/1.png", "test/cow/1.png", "test/ant/1.png"), "train has not: ant, cow"),
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
        tar.extractall(root, filter="data")


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
