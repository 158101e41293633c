import math
import shutil
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules import Batch, CIFAR10DataModule, DataError
from datamodules.augmentation import AUGMENTATIONS, Draw, principal_components
from datamodules.images import SIZE, read_batch
from datamodules.mixing import boxes, epoch_mixtures
from datamodules.pixels import normalize, resize, scale
from datamodules.sampling import BatchLoader, epoch_draws
from datamodules.sources import CIFAR10, synthetic
from datamodules.trivial import trivial_augment
from tests.conftest import CLASSES, TEST, TRAIN

AVAILABLE = len(CLASSES) * TRAIN
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def attach(data: CIFAR10DataModule, **facts: Any) -> CIFAR10DataModule:
    """Puts a stand-in in the trainer's place."""
    usual = {
        "training": True,
        "current_epoch": 0,
        "max_epochs": 1,
        "max_steps": -1,
        "check_val_every_n_epoch": 1,
        "global_step": 0,
        "should_stop": False,
        "sanity_checking": False,
        "world_size": 1,
        "global_rank": 0,
        "strategy": SimpleNamespace(broadcast=lambda value: value, root_device=torch.device("cpu")),
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
    }
    data.trainer = cast(Trainer, SimpleNamespace(**usual | facts))
    return data


def ready(data: CIFAR10DataModule) -> CIFAR10DataModule:
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def module(image_folder: Path) -> Any:
    """Makes a data module of the tiny folder, set up."""

    def make(**settings: Any) -> CIFAR10DataModule:
        return ready(CIFAR10DataModule(str(image_folder), "folder", **{"batch_size": 20, **settings}))

    return make


def pixels_of(folder: Path) -> Tensor:
    """The images as they lie on the disk, in the order of their names: uint8 [N, 3, 32, 32]."""
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.name)
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2)


@pytest.fixture
def pixels(image_folder: Path) -> Tensor:
    return pixels_of(image_folder / "train")


def plain(images: Tensor) -> Tensor:
    """Scaled and normalized, and no more."""
    return (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def taken(data: CIFAR10DataModule, batch: Batch) -> Tensor:
    """The images as the network takes them; the rest of the batch stays as it is."""
    result = cast(Batch, data.on_after_batch_transfer(batch, 0))
    assert type(result) is Batch
    assert result.total == batch.total
    assert torch.equal(result.indices, batch.indices)
    assert torch.equal(result.labels, batch.labels)
    return result.images


# The split


def test_overfit_takes_the_first_images_and_the_next_for_validation_1000_and_500_by_default(module: Any) -> None:
    data = module(split="overfit", train_size=100, val_size=30)
    assert data.train_indices.tolist() == list(range(100))
    assert data.val_indices.tolist() == list(range(100, 130))
    assert data.test_indices.tolist() == list(range(len(CLASSES) * TEST))
    assert data.augment == "none"
    with pytest.raises(DataError, match="1000 training and 500 validation images were asked for, but tiny has 180"):
        module(split="overfit")


def test_fewer_test_images_are_the_same_for_every_seed_and_part_of_more(module: Any) -> None:
    few, more = (
        module(test_size=9),
        module(test_size=30, seed=1, split_seed=1, split="overfit", train_size=50, val_size=9),
    )
    chosen = few.test_indices.tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 9
    assert set(chosen) < set(more.test_indices.tolist())
    assert few.description().items() >= {"test_size": 9, "test_available": len(CLASSES) * TEST}.items()


def test_full_takes_a_random_tenth_for_validation_and_the_rest_for_training(module: Any) -> None:
    data = module()
    assert len(data.val_indices) == AVAILABLE // 10
    assert sorted([*data.train_indices.tolist(), *data.val_indices.tolist()]) == list(range(AVAILABLE))
    assert data.val_indices.tolist() != sorted(data.val_indices.tolist())
    assert data.augment == "flip_crop"


@pytest.mark.parametrize("split", ["overfit", "full"])
@pytest.mark.parametrize(("train_size", "val_size"), [(100, 50), (1, 1), (150, 30)])
def test_both_sizes_can_be_set(split: str, train_size: int, val_size: int, module: Any) -> None:
    data = module(split=split, train_size=train_size, val_size=val_size, batch_size=1)
    assert (len(data.train_indices), len(data.val_indices)) == (train_size, val_size)
    assert not set(data.train_indices.tolist()) & set(data.val_indices.tolist())


@pytest.mark.parametrize("split", ["overfit", "full"])
def test_subsets_share_no_image(split: str, module: Any) -> None:
    make = partial(module, split=split, train_size=40, val_size=20)
    plain, *subsets = (make(), *(make(subset=number) for number in range(3)))
    assert subsets[0].fingerprint == plain.fingerprint
    assert len({data.fingerprint for data in subsets}) == 3
    images = [image for data in subsets for image in (*data.train_indices.tolist(), *data.val_indices.tolist())]
    assert len(set(images)) == len(images) == AVAILABLE
    assert split == "full" or images == list(range(AVAILABLE))
    assert subsets[2].description()["subset"] == 2
    with pytest.raises(
        DataError, match=r"subset 3 of 40 training and 20 validation images ends at image 240, but .*180"
    ):
        make(subset=3)
    with pytest.raises(ValueError, match=r"data\.subset must be at least 0, not -1"):
        make(subset=-1)


def test_each_size_overrides_its_own_alone(module: Any) -> None:
    fewer = module(train_size=40)
    assert (len(fewer.train_indices), len(fewer.val_indices)) == (40, 18)
    more = module(val_size=60)
    assert (len(more.train_indices), len(more.val_indices)) == (120, 60)
    for part in (40, 80):
        assert set(module(train_size=part).train_indices.tolist()) <= set(module().train_indices.tolist())


@pytest.mark.parametrize("augment", ["none", "flip_crop", "trivial", "vgg", "notebook"])
def test_augment_overrides_the_splits(augment: str, module: Any) -> None:
    assert module(augment=augment).augment == augment
    assert module(split="overfit", train_size=20, val_size=5, augment=augment).augment == augment


def test_the_split_and_the_order_of_training_each_depend_on_their_own_seed(module: Any) -> None:
    one, again, two = (attach(module(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one.train_indices, two.train_indices)
    assert not torch.equal(module(split_seed=1).train_indices, module(split_seed=2).train_indices)
    first, same, other = (next(iter(data.train_dataloader())).indices.tolist() for data in (one, again, two))
    assert first == same != other


def test_the_seed_is_that_of_seed_everything_unless_told_otherwise(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert CIFAR10DataModule(str(image_folder), "folder").seed == 17
    assert CIFAR10DataModule(str(image_folder), "folder", seed=0).seed == 0
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert CIFAR10DataModule(str(image_folder), "folder").seed == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 181, "val_size": 1}, "181 training and 1 validation images were asked for"),
        (
            {"train_size": 100, "val_size": 81},
            "tiny has 180 images to train on; try --data.train_size 99 --data.val_size 81$",
        ),
        ({"train_size": 170}, "170 training and 18 validation"),
        ({"val_size": 180}, "0 training and 180 validation"),
        ({"val_size": 200}, "try --data.train_size 162 --data.val_size 18$"),
        ({"test_size": 46}, "46 test images were asked for, but tiny has 45; try --data.test_size 45$"),
        (
            {"split": "overfit", "batch_size": 128, "test_size": 50},
            "1000 training and 500 validation images were asked for, but tiny has 180 images to train on; "
            "data.batch_size 128 is larger than the 120 training images; "
            "50 test images were asked for, but tiny has 45; "
            "try --data.train_size 120 --data.val_size 60 --data.batch_size 120 --data.test_size 45$",
        ),
    ],
)
def test_more_images_than_there_are_is_refused(settings: dict[str, int], message: str, module: Any) -> None:
    with pytest.raises(DataError, match=message):
        module(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -0.1}, "data.mixup must be 0, which switches it off, or a finite alpha above 0, not -0.1"),
        ({"cutmix": math.nan}, "data.cutmix must be 0, which switches it off, or a finite alpha above 0, not nan"),
        ({"label_noise": 1.5}, r"data.label_noise must be in \[0, 1\], not 1.5"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, not 0"),
        ({"image_size": 0}, "data.image_size must be at least 1, not 0"),
        ({"train_size": 0}, "data.train_size must be at least 1, not 0"),
        ({"cutout": -1}, "data.cutout must be at least 0"),
        ({"cutout": 17, "image_size": 16}, "at most data.image_size, 16, not 17"),
        ({"val_size": -1}, "data.val_size must be at least 1, not -1"),
        ({"std": (0.2, 0.0, 0.2)}, r"data.std must be three numbers in \(0, 1\], not \[0.2, 0.0, 0.2\]"),
        ({"std": (0.2, math.nan, 0.2)}, r"data.std must be three numbers in \(0, 1\], not \[0.2, nan, 0.2\]"),
        ({"mean": (0.2, 0.2, math.inf)}, r"data.mean must be three numbers in \[0, 1\], not \[0.2, 0.2, inf\]"),
        ({"mean": (125, 123, 114)}, r"not \[125, 123, 114\]; divide those of pixels from 0 to 255 by 255"),
        ({"std": (63, 62, 67)}, r"not \[63, 62, 67\]; divide those of pixels from 0 to 255 by 255"),
        (
            {"val_size": 0, "test_size": 0},
            "val_size must be at least 1, not 0; data.test_size must be at least 1, not 0",
        ),
        ({"train_size": 50, "batch_size": 51}, "51 is larger than the 50 training images; try --data.batch_size 50"),
        ({"split": "overfit", "batch_size": 1001}, "1001 is larger than the 1000 .* try --data.batch_size 128"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(settings: dict[str, Any], message: str, image_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CIFAR10DataModule(str(image_folder), "folder", **settings)


def test_a_batch_larger_than_what_the_split_leaves_is_refused(module: Any) -> None:
    with pytest.raises(DataError, match="163 is larger than the 162 training images; try"):
        module(batch_size=163)


@pytest.mark.parametrize(("batch_size", "world_size", "share"), [(128, 1, 128), (128, 2, 64), (12, 3, 4), (8, 8, 1)])
def test_the_batch_is_divided_among_the_processes(batch_size: int, world_size: int, share: int) -> None:
    assert CIFAR10DataModule(batch_size=batch_size).share_of_batch(world_size) == share


@pytest.mark.parametrize(("batch_size", "world_size", "remedy"), [(128, 3, 129), (1, 2, 2), (100, 8, 96)])
def test_a_batch_that_does_not_divide_is_refused(batch_size: int, world_size: int, remedy: int, module: Any) -> None:
    message = f"cannot be divided among {world_size}; try --data.batch_size {remedy}$"
    with pytest.raises(ValueError, match=message):
        CIFAR10DataModule(batch_size=batch_size).share_of_batch(world_size)
    with pytest.raises(ValueError, match=message):
        attach(module(batch_size=batch_size), world_size=world_size).train_dataloader()


def test_classes_are_the_sources_and_known_when_the_folder_is_gone(image_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(image_folder, tmp_path / "stick"))
    data = CIFAR10DataModule(str(folder), "folder", batch_size=20)
    assert data.classes == CLASSES
    assert data.num_classes == 3
    ready(data)
    shutil.rmtree(folder)
    assert data.state_dict()["classes"] == list(CLASSES)


# Fingerprint and checkpoints


def test_the_fingerprint_is_of_the_split_and_the_data_alone(module: Any, image_folder: Path, tmp_path: Path) -> None:
    assert module(seed=1, batch_size=10, augment="none").fingerprint == module(seed=2).fingerprint
    settings: list[dict[str, Any]] = [
        {},
        {"split_seed": 1},
        {"train_size": 100},
        {"train_size": 100, "val_size": 20},
        {"split": "overfit", "train_size": 162, "val_size": 18},
        {"split": "overfit", "train_size": 161, "val_size": 19},
    ]
    fingerprints = {module(**each).fingerprint for each in settings}
    copy = tmp_path / "tiny"
    for path in image_folder.rglob("*.png"):
        target = copy / path.relative_to(image_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)

    def fingerprint() -> str:
        return ready(CIFAR10DataModule(str(copy), "folder", batch_size=20)).fingerprint

    assert fingerprint() in fingerprints
    (copy / "test" / "cat" / "00002.png").unlink()
    assert len(fingerprints | {fingerprint()}) == len(settings) + 1


@pytest.mark.parametrize(("noise", "drawn"), [(0.25, 25), (1.0, 100)])
def test_label_noise_draws_some_training_labels_anew(noise: float, drawn: int, module: Any) -> None:
    sound, noisy = (module(split="full", train_size=100, val_size=80, label_noise=share) for share in (0, noise))
    same = noisy.images.train_labels == sound.images.train_labels
    assert same[noisy.val_indices].all()
    assert torch.equal(noisy.images.test_labels, sound.images.test_labels)
    changed = int((~same[noisy.train_indices]).sum())
    assert drawn / 3 < changed < drawn, "of three classes, a third of the draws is the label that was there"
    assert set(noisy.images.train_labels.tolist()) == {0, 1, 2}


def test_noise_of_less_than_half_a_label_is_refused(module: Any) -> None:
    with pytest.raises(DataError, match=r"label_noise 0.004 is none of 100 training labels; give at least 0.01, or 0"):
        module(split="full", train_size=100, val_size=80, label_noise=0.004)


def test_label_noise_is_of_the_split_and_marks_it(module: Any) -> None:
    make = partial(module, split="overfit", train_size=100, val_size=30)
    one, again, other = (make(label_noise=1.0, **more) for more in ({"seed": 1}, {"seed": 2}, {"split_seed": 1}))
    assert torch.equal(one.images.train_labels, again.images.train_labels)
    assert one.fingerprint == again.fingerprint
    assert not torch.equal(one.images.train_labels, other.images.train_labels)
    assert len({one.fingerprint, other.fingerprint, make().fingerprint}) == 3
    assert one.description()["label_noise"] == 1.0


def test_the_description_is_of_plain_values(module: Any) -> None:
    data = module(train_size=100, val_size=30)
    assert data.description() == {
        "source": "folder",
        "name": "tiny",
        "identity": data.images.identity,
        "fingerprint": data.fingerprint,
        "split": "full",
        "train_size": 100,
        "val_size": 30,
        "subset": 0,
        "test_size": 45,
        "test_available": 45,
        "augment": "flip_crop",
        "cutout": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "label_noise": 0.0,
        "classes": list(CLASSES),
    }


def test_only_training_on_another_split_is_refused(module: Any) -> None:
    state = module(split_seed=1).state_dict()
    assert state["classes"] == list(CLASSES)
    attach(module(split_seed=1)).load_state_dict(state)
    with pytest.raises(DataError, match="trained on other data or another split"):
        attach(module(split_seed=2)).load_state_dict(state)
    attach(module(split_seed=2), state=SimpleNamespace(fn=TrainerFn.TESTING)).load_state_dict(state)
    module(split_seed=2).load_state_dict(state)


def test_processes_that_see_other_data_are_refused(module: Any) -> None:
    data = attach(module(), global_rank=1, strategy=SimpleNamespace(broadcast=lambda value: "that of process 0"))
    with pytest.raises(DataError, match="process 1 has other data or another split than process 0"):
        data.setup("fit")


# Batches


def loader_of(data: CIFAR10DataModule, split: str) -> BatchLoader:
    if split in ("val", "probe"):
        return data.val_dataloader()[split == "probe"]
    return data.train_dataloader() if split == "train" else data.test_dataloader()


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loaders_give_each_image_of_their_split_once(world_size: int, module: Any) -> None:
    data = module(train_size=90, val_size=33)
    for split in ("train", "val", "probe", "test"):
        indices: list[int] = []
        for rank in range(world_size):
            attach(data, world_size=world_size, global_rank=rank)
            indices += [index for batch in loader_of(data, split) for index in batch.indices.tolist()]
        assert sorted(indices) == sorted(getattr(data, f"{split}_indices").tolist())


@pytest.mark.parametrize(("train_size", "val_size", "probes"), [(90, 33, 33), (20, 33, 20)])
def test_the_probe_is_drawn_from_the_training_images_once(
    train_size: int, val_size: int, probes: int, module: Any
) -> None:
    def probe(**settings: Any) -> list[int]:
        data = module(train_size=train_size, val_size=val_size, batch_size=20, **settings)
        assert set(data.probe_indices.tolist()) <= set(data.train_indices.tolist())
        indices: list[int] = data.probe_indices.tolist()
        return indices

    assert len(set(probe())) == probes
    assert probe() == probe(seed=7)
    assert probe() != probe(split_seed=1)


@pytest.mark.parametrize(
    ("every", "validated", "evaluated"),
    [
        (1, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        (4, [0, 1, 2, 3, 4, 5], [0, 4, 5]),
        (4, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 0, 4, 4]),  # twice an epoch
        (9, [0, 1, 2, 3, 4, 5], [0, 5]),
        (4, [1, 3, 5], [1, 5]),
        (2, [2, 5], [2, 5]),
        (4, [3], [3]),
        (2, [1, 4], [1, 4]),  # of intervals in steps, whatever the epochs between them
        (1, [1, 2, 4], [1, 2, 4]),
        (3, [2, 3, 5], [2, 3, 5]),
    ],
)
def test_the_probe_is_evaluated_every_so_many_epochs_and_in_the_last(
    every: int, validated: list[int], evaluated: list[int], module: Any
) -> None:
    found, state = [], module().state_dict()
    for epoch in validated:  # each as if the run had been resumed before it
        data = attach(module(probe_every=every), max_epochs=6, current_epoch=epoch)
        data.load_state_dict(state)
        found += [epoch] if list(data.val_dataloader()[1]) else []
        state = data.state_dict()
    assert found == evaluated
    trainer, (_, probe) = cast(Any, data.trainer), data.val_dataloader()
    trainer.current_epoch, trainer.sanity_checking = 0, True
    assert not list(probe)
    trainer.current_epoch, trainer.sanity_checking = 2, False
    for end in ({"max_steps": 7, "global_step": 7}, {"should_stop": True}):
        assert list(attach(data, max_epochs=6, current_epoch=2, **end).val_dataloader()[1])


def test_the_probe_can_be_switched_off(module: Any) -> None:
    assert len(attach(module(probe_every=0)).val_dataloader()) == 1
    with pytest.raises(ValueError, match=r"data\.probe_every must be at least 0"):
        module(probe_every=-1)


def test_training_images_are_shuffled_each_running_epoch_and_the_others_never(module: Any) -> None:
    data = attach(module())
    loaders = {split: loader_of(data, split) for split in ("train", "val", "test")}

    def order(split: str, epoch: int) -> list[int]:
        cast(Any, data.trainer).current_epoch = epoch
        return [index for batch in loaders[split] for index in batch.indices.tolist()]

    assert order("train", 0) != order("train", 1)
    assert order("train", 1) == order("train", 1)
    for split in ("val", "test"):
        assert order(split, 0) == order(split, 1) == getattr(data, f"{split}_indices").tolist()


@pytest.mark.parametrize(
    ("augment", "split"),
    [
        ("none", "train"),
        ("none", "val"),
        ("flip_crop", "val"),
        ("trivial", "val"),
        ("notebook", "val"),
        ("none", "test"),
    ],
)
def test_images_without_augmentation_are_scaled_and_normalized_and_no_more(
    augment: str, split: str, module: Any, image_folder: Path
) -> None:
    data = attach(module(augment=augment, cutout=0 if split == "train" else 8), training=split == "train")
    expected = plain(pixels_of(image_folder / ("test" if split == "test" else "train")))
    for batch in loader_of(data, split):
        images = taken(data, batch)
        assert images.dtype == torch.float32
        assert torch.allclose(images, expected[batch.indices], atol=1e-5)


def test_flip_crop_takes_a_window_of_the_image_padded_with_black(module: Any, pixels: Tensor) -> None:
    data = attach(module(augment="flip_crop"))
    places = set()
    for batch in islice(data.train_dataloader(), 5):
        for image, original in zip(taken(data, batch), pixels[batch.indices], strict=True):
            windows = torch.nn.functional.pad(original, (4, 4, 4, 4)).unfold(1, 32, 1).unfold(2, 32, 1)
            candidates = plain(windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32))
            differences = (torch.cat([candidates, candidates.flip(-1)]) - image).abs().amax((1, 2, 3))
            assert differences.min() < 1e-5
            flipped, place = divmod(int(differences.argmin()), 9 * 9)
            places.add((flipped, *divmod(place, 9)))
    flips, rows, columns = (set(each) for each in zip(*places, strict=True))
    assert flips == {0, 1}
    assert rows == columns == set(range(9))


@pytest.mark.parametrize(
    ("augment", "cutout"), [("flip_crop", 0), ("vgg", 0), ("notebook", 0), ("trivial", 0), ("none", 8), ("trivial", 8)]
)
def test_augmentation_depends_on_seed_epoch_and_index_alone(augment: str, cutout: int, module: Any) -> None:
    def augmented(seed: int = 0, epoch: int = 0, world_size: int = 1, batch_size: int = 20) -> Tensor:
        """The training images in the order of the set, whatever the epoch's order."""
        data = module(seed=seed, augment=augment, cutout=cutout, batch_size=batch_size, train_size=150)
        images = torch.empty(AVAILABLE, 3, 32, 32)
        for rank in range(world_size):
            attach(data, current_epoch=epoch, world_size=world_size, global_rank=rank)
            for batch in data.train_dataloader():
                images[batch.indices] = taken(data, batch)
        return images[data.train_indices.sort()[0]]

    first = augmented()
    assert torch.equal(augmented(), first)
    assert torch.allclose(augmented(world_size=2), first, atol=1e-6)
    assert torch.allclose(augmented(world_size=3, batch_size=36), first, atol=1e-6)
    for other in (augmented(seed=1), augmented(epoch=1)):
        assert (other != first).flatten(1).any(1).float().mean() > 0.9


def mixed_images(module: Any, *, world_size: int = 1, batch_size: int = 20, **settings: Any) -> dict[str, Tensor]:
    """Return images, labels, partners and shares in the order of the training set; 0 for images outside the split."""
    data = module(batch_size=batch_size, train_size=150, **settings)
    found = {"images": torch.zeros(AVAILABLE, 3, 32, 32), "shares": torch.zeros(AVAILABLE)}
    found |= {name: torch.zeros(AVAILABLE, dtype=torch.int64) for name in ("labels", "partners", "others")}
    for rank in range(world_size):
        attach(data, current_epoch=2, world_size=world_size, global_rank=rank)
        for raw in data.train_dataloader():
            batch = cast(Batch, data.on_after_batch_transfer(raw, 0))
            found["images"][batch.indices], found["labels"][batch.indices] = batch.images, batch.labels
            if batch.partners is not None and batch.shares is not None:
                found["shares"][batch.indices] = batch.shares
                found["partners"][batch.indices], found["others"][batch.indices] = (
                    batch.partners.indices,
                    batch.partners.labels,
                )
    return found


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_mixed_image_is_of_two_that_are_augmented_as_without_mixing(augment: str, module: Any) -> None:
    settings: dict[str, Any] = {"augment": augment, "label_noise": 0.5}
    plain = mixed_images(module, **settings)
    mixed = mixed_images(module, **settings, mixup=0.5, cutmix=1.0)
    assert not plain["shares"].any(), "nothing is mixed unless asked for"
    numbers = epoch_mixtures(AVAILABLE, 0, 2, 0.5, 1.0, torch.device("cpu"))
    for index in module(train_size=150).train_indices.tolist():
        partner = int(mixed["partners"][index])
        own, other = plain["images"][index], plain["images"][partner]
        assert mixed["others"][index] == plain["labels"][partner], "the label that it was given"
        share = float(mixed["shares"][index])
        if numbers[1, index]:
            top, bottom, left, right = boxes(numbers[0], numbers[2], numbers[3], 32, 32)[:, index].tolist()
            expected = own.clone()
            expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        else:
            expected = share * own + (1 - share) * other
        assert torch.allclose(mixed["images"][index], expected, atol=1e-5)
    assert torch.equal(mixed["labels"], plain["labels"])


@pytest.mark.parametrize("augment", ["flip_crop", "vgg"])
def test_mixtures_do_not_depend_on_processes_and_batch_size(augment: str, module: Any) -> None:
    settings: dict[str, Any] = {"augment": augment, "mixup": 1.0, "cutmix": 1.0}
    first = mixed_images(module, **settings)
    for more in ({"world_size": 2}, {"world_size": 3, "batch_size": 36}):
        other = mixed_images(module, **settings, **more)
        for name in ("shares", "partners", "others", "labels"):
            assert torch.equal(other[name], first[name])
        assert torch.allclose(other["images"], first["images"], atol=1e-6)
    assert not torch.equal(mixed_images(module, **settings, seed=1)["partners"], first["partners"])


def test_vgg_takes_windows_of_the_rescaled_image_and_evaluates_the_one_in_the_middle(
    module: Any, pixels: Tensor
) -> None:
    data = attach(module(augment="vgg", image_size=64))
    batch = next(iter(data.train_dataloader()))
    images = taken(data, batch)
    assert images.shape == (20, 3, 64, 64)
    rescaled = resize(scale(pixels[batch.indices]), 73)  # 256 for 224, in proportion
    shifts = []
    for image, original in zip(images, rescaled, strict=True):
        unscaled = image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        windows = torch.cat([original, original.flip(-1)]).view(2, 3, 73, 73).unfold(2, 64, 1).unfold(3, 64, 1)
        differences = unscaled - windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 64, 64)
        best = differences[differences.std((2, 3)).sum(1).argmin()]
        assert best.std((1, 2)).max() < 1e-5  # one constant a channel: the colour shift
        shifts.append(best.mean((1, 2)))
    assert torch.stack(shifts).std(0).min() > 1e-3
    attach(data, training=False)
    batch = next(iter(loader_of(data, "val")))
    expected = resize(scale(pixels[batch.indices]), 73)[:, :, 4:68, 4:68]
    assert torch.allclose(taken(data, batch), normalize(expected, torch.tensor(MEAN), torch.tensor(STD)), atol=1e-5)


def test_components_are_computed_once_for_the_same_images_and_split(module: Any) -> None:
    cache = module().source.cache
    known = set(cache.iterdir())
    for size, seed in ((150, 5), (151, 5), (150, 6)):
        settings = {"train_size": size, "split_seed": seed}
        module(augment="flip_crop", **settings)
        assert set(cache.iterdir()) == known
        data = module(augment="vgg", **settings)
        (path,) = set(cache.iterdir()) - known
        components = principal_components(data.images.train_images[data.train_indices])
        assert np.array_equal(np.load(path), components.numpy())
        np.save(path, 100 * components.numpy())  # what is there is used
        batch = next(iter(attach(module(augment="vgg", **settings)).train_dataloader()))
        assert taken(attach(module(augment="vgg", **settings)), batch).std() > 5
        path.unlink()


@pytest.mark.parametrize("image_size", [32, 64])
def test_notebook_takes_windows_of_the_resized_image_padded_with_black_and_turns_them_over(
    image_size: int, module: Any, pixels: Tensor
) -> None:
    data = attach(module(augment="notebook", image_size=image_size), current_epoch=3)
    batch = next(iter(data.train_dataloader()))
    turned = set()
    purposes = (Draw.TOP, Draw.LEFT, Draw.FLIP, Draw.UPSIDE_DOWN)
    draws = epoch_draws(AVAILABLE, data.seed, 3, purposes, torch.device("cpu"))[:, batch.indices].T.tolist()
    images = zip(taken(data, batch), pixels[batch.indices], draws, strict=True)
    for image, original, (top, left, flipped, upside_down) in images:
        resized = resize(scale(original[None]), image_size)[0]
        expected = tv.crop(tv.pad(resized, [4]), int(top * 9), int(left * 9), image_size, image_size)
        expected = tv.hflip(expected) if flipped < 0.5 else expected
        expected = tv.vflip(expected) if upside_down < 0.5 else expected
        assert torch.allclose(image, normalize(expected, torch.tensor(MEAN), torch.tensor(STD)), atol=1e-5)
        turned.add((flipped < 0.5, upside_down < 0.5))
    assert len(turned) == 4


def test_trivial_changes_the_windows_of_flip_crop(module: Any) -> None:
    plainly, changed = (attach(module(augment=augment), current_epoch=3) for augment in ("flip_crop", "trivial"))
    batch = next(iter(plainly.train_dataloader()))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    windows = ((taken(plainly, batch) * std + mean) * 255).round().to(torch.uint8)
    purposes = (Draw.OPERATION, Draw.STRENGTH, Draw.SIGN)
    draws = epoch_draws(AVAILABLE, changed.seed, 3, purposes, torch.device("cpu"))[:, batch.indices]
    assert torch.allclose(taken(changed, batch), plain(trivial_augment(windows, *draws)), atol=1e-5)


@pytest.mark.parametrize("augment", ["none", "flip_crop", "trivial", "vgg", "notebook"])
@pytest.mark.parametrize(("image_size", "side"), [(32, 8), (64, 9)])
def test_cutout_is_a_square_of_zeros_in_the_networks_image(
    image_size: int, side: int, augment: str, module: Any
) -> None:
    make = partial(module, augment=augment, image_size=image_size)
    whole, cut = (attach(make(cutout=cutout), current_epoch=3) for cutout in (0, side))
    batch = next(iter(whole.train_dataloader()))
    purposes = (Draw.CUTOUT_TOP, Draw.CUTOUT_LEFT)
    draws = epoch_draws(AVAILABLE, cut.seed, 3, purposes, torch.device("cpu"))[:, batch.indices].T.tolist()
    for image, original, (top, left) in zip(taken(cut, batch), taken(whole, batch), draws, strict=True):
        expected = original.clone()
        row, column = int(top * image_size) - side // 2, int(left * image_size) - side // 2
        expected[:, max(row, 0) : row + side, max(column, 0) : column + side] = 0
        assert torch.equal(image, expected)
    attach(whole, training=False)
    attach(cut, training=False)
    assert torch.equal(taken(cut, batch), taken(whole, batch))


@pytest.mark.parametrize("image_size", [16, 64])
@pytest.mark.parametrize("training", [False, True])
def test_images_are_resized_on_the_device(image_size: int, training: bool, module: Any, pixels: Tensor) -> None:
    data = attach(module(augment="none", image_size=image_size), training=training)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (20, SIZE, SIZE, 3)
    assert batch.images.dtype == torch.uint8  # as such it travels
    expected = normalize(resize(scale(pixels[batch.indices]), image_size), torch.tensor(MEAN), torch.tensor(STD))
    assert torch.allclose(taken(data, batch), expected, atol=1e-5)


def test_mean_and_std_are_as_set(module: Any) -> None:
    data = attach(module(augment="none", mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3))
    batch = next(iter(data.train_dataloader()))
    assert torch.allclose(taken(data, batch), batch.images.permute(0, 3, 1, 2).float(), atol=1e-3)


def test_the_example_input_passes_as_it_is(module: Any) -> None:
    example = torch.zeros(1, 3, 32, 32)
    assert attach(module()).on_after_batch_transfer(example, 0) is example


def test_files_are_read_as_the_network_takes_them(image_folder: Path, pixels: Tensor) -> None:
    paths = [image_folder / "train" / CLASSES[index % 3] / f"{index:05}.png" for index in (7, 2)]
    assert torch.equal(read_batch(paths), pixels[[7, 2]])


# CIFAR-10 out of reach


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch, no_mirror: None) -> list[int]:
    """The numbers of images that were drawn, as it goes; no mirror can be reached."""
    counts: list[int] = []

    def draw(seed: int, first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        counts.append(count)
        return np.zeros((100, 32, 32, 3), dtype=np.uint8), np.arange(100) % 10

    monkeypatch.setattr(synthetic, "draw", draw)
    return counts


unreached = partial(CIFAR10DataModule, batch_size=10)


def test_where_cifar10_is_unreachable_the_error_names_three_ways_on(draws: list[int], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        unreached(str(tmp_path)).prepare_data()
    message = str(caught.value)
    assert f"CIFAR-10 is not in {tmp_path} and could not be downloaded" in message
    for way in (
        "1. put cifar-10-python.tar.gz into",
        "2. use your own images: --data.source folder",
        "3. use the stand",
    ):
        assert way in message
    assert not draws


def test_every_process_takes_the_stand_in_where_cifar10_is_unreachable(draws: list[int], tmp_path: Path) -> None:
    data, other = (unreached(str(tmp_path), stand_in=True) for _ in range(2))
    data.prepare_data()
    assert draws == [50_000, 10_000]
    for each in (data, other):
        each.setup("fit")
        assert each.description()["source"] == "synthetic"
        assert each.classes == synthetic.CLASSES


@pytest.mark.parametrize("stand_in", [False, True])
def test_a_wrong_archive_is_not_taken_for_none(stand_in: bool, draws: list[int], tmp_path: Path) -> None:
    (tmp_path / CIFAR10.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DataError, match=f"{CIFAR10.ARCHIVE} has the MD5 sum") as caught:
        unreached(str(tmp_path), stand_in=stand_in).prepare_data()
    assert "could not be downloaded" not in str(caught.value)
    assert not draws


@pytest.mark.parametrize(
    ("source", "message"), [("cifar10", "incomplete or damaged"), ("folder", "holds no folder of images")]
)
def test_the_stand_in_is_not_taken_for_a_damaged_or_missing_folder(
    source: Any, message: str, draws: list[int], tmp_path: Path
) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=message):
        unreached(str(tmp_path), source, stand_in=True).prepare_data()
    assert not draws
