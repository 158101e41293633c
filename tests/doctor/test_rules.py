"""Test the rules alone: which findings they report, and when they report none."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedules

from overfitting_lab.doctor import Diagnosis, Severity, activations, confidence, data, gradients, progress
from overfitting_lab.doctor.layers import measure_layers
from overfitting_lab.doctor.progress import Facts
from overfitting_lab.doctor.schedule import capacity, length, schedule_cut_short
from overfitting_lab.runs import Run
from overfitting_lab.runs.epochs import EpochRecord

LN10 = math.log(10)
REFERENCE = Path(__file__).parents[2] / "lightning_logs" / "reference"


def facts(**other: Any) -> Facts:
    known = Facts(
        10, LN10, 16, train_size=45000, val_size=5000, epoch_size=45000, remedies=(), labels_fit=True, label_noise=0.0
    )
    return replace(known, **other)


def codes(diagnoses: Any) -> list[str]:
    return [diagnosis.code for diagnosis in diagnoses]


def test_a_diagnosis_survives_a_checkpoint() -> None:
    diagnosis = Diagnosis("dead_relus", Severity.WARNING, "what", "evidence", "remedy", ("3", "5"), 1, 50)
    assert Diagnosis.from_dict(diagnosis.as_dict()) == diagnosis
    assert diagnosis.as_dict()["severity"] == "warning"


@pytest.mark.parametrize(
    ("losses", "change", "found"),
    [
        # Measured with VGG16 at 32x32: means of 50 steps.
        ([2.306, 2.183, 2.030, 1.9, 1.85, 1.8, 1.751], 3e-4, []),
        ([2.296, 2.210, 2.159, 2.1, 2.1, 2.1, 2.1], 3e-4, []),
        ([2.321, 2.272, 2.303, 2.303, 2.303, 2.303, 2.303], 3e-4, ["stuck_at_chance"]),
        ([3.2, 3.62, 2.66, 2.57, 2.6, 2.6, 2.6], 1e-2, ["learning_rate_too_high"]),
        ([2.303] * 7, 1e-6, ["learning_rate_too_low"]),
        ([2.303] * 6, 1e-6, []),  # the plateau is normal until step 320
    ],
)
def test_a_plateau(losses: list[float], change: float, found: list[str]) -> None:
    assert codes(progress.not_learning(facts(), losses, change, (), 50 * len(losses))) == found


def test_a_known_cause_makes_a_plateau_hopeless_at_once() -> None:
    (found,) = progress.not_learning(facts(), [LN10] * 7, 1e-9, ("activations_vanish",), 350)
    assert (found.code, found.severity) == ("stuck_at_chance", Severity.FATAL)
    assert "activations_vanish" in found.what
    (found,) = progress.not_learning(facts(), [LN10] * 7, 1e-9, ("gradients_vanish",), 350, certain=False)
    assert found.severity is Severity.WARNING, "the cause is no more than a warning"
    (found,) = progress.not_learning(facts(), [LN10] * 7, 1e-3, (), 350)
    assert found.severity is Severity.WARNING
    (found,) = progress.not_learning(facts(), [LN10] * 20, 1e-3, (), 1000)
    assert found.severity is Severity.FATAL


def test_labels_without_meaning_explain_a_plateau() -> None:
    assert codes(progress.not_learning(facts(labels_fit=False), [LN10] * 7, 1e-3, (), 350)) == ["shuffled_labels"]
    assert codes(progress.not_learning(facts(labels_fit=False), [LN10] * 7, 1e-9, (), 350)) == ["learning_rate_too_low"]
    asked_for = facts(labels_fit=False, label_noise=1.0)
    assert codes(progress.not_learning(asked_for, [LN10] * 7, 1e-3, (), 350)) == ["stuck_at_chance"]


def test_unequal_classes_lower_the_chance_level() -> None:
    chance = data.chance(torch.tensor([0] * 90 + [1] * 10), 2)
    assert chance == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert codes(progress.not_learning(facts(chance=chance), [chance] * 7, 1e-3, (), 350)) == ["stuck_at_chance"]


def epochs(*rows: tuple[float, float, float | None, float | None]) -> list[EpochRecord]:
    return [EpochRecord(number, *row, 0, 0, 0) for number, row in enumerate(rows)]


def test_a_first_loss_far_above_chance_level_is_no_fault() -> None:
    losses = [14.24, 2.95, 2.06, 1.67]
    assert codes(progress.learning_rate_too_high(facts(), losses, ())) == []
    assert codes(progress.learning_rate_too_high(facts(), [*losses, 7.0], ())) == ["learning_rate_too_high"]


def test_an_enormous_first_loss_is_the_steps_unless_the_initial_weights_explain_it() -> None:
    # Measured with AlexNet and Adam at 0.1, whose loss only falls afterwards; and with weights of N(0, 0.1²).
    for loss, causes, expected in ((4.5e11, (), True), (7569.8, ("activations_explode",), False), (17.8, (), False)):
        found = codes(progress.learning_rate_too_high(facts(), [loss], causes))
        assert found == ["learning_rate_too_high"] * expected


def test_over_fitting_is_seen_once_it_holds_and_says_since_when() -> None:
    small = facts(train_size=1000, val_size=500, depth=8)
    rows = Run(REFERENCE / "overfit" / "version_0").records[:21]
    for number in range(1, len(rows)):
        assert codes(progress.diagnose_epochs(small, rows[:number], ())) == []
    (found,) = progress.diagnose_epochs(small, rows, ())
    assert (found.code, found.severity, found.epoch) == ("over_fitting", Severity.NOTE, 9)
    assert "since epoch 10" in found.what
    assert "--model.dropout" in found.remedy
    tried = facts(train_size=1000, val_size=500, depth=8, remedies=("dropout", "augmentation flip_crop"))
    (found,) = progress.diagnose_epochs(tried, rows, ())
    assert found.remedy == "more --model.optimizer.weight_decay, or more images: --config regularized.yaml"


def test_shuffled_labels_are_told_from_over_fitting() -> None:
    rows = epochs((1.0, 0.6, 2.5, 0.11), (0.5, 0.8, 3.0, 0.10), (0.2, 0.9, 3.5, 0.09))
    for fit, found in ((False, True), (None, False), (True, False)):
        small = facts(train_size=1000, val_size=500, labels_fit=fit)
        assert ("shuffled_labels" in codes(progress.diagnose_epochs(small, rows, ()))) is found
    asked_for = facts(train_size=1000, val_size=500, labels_fit=False, label_noise=1.0)
    (said,) = (said for said in progress.diagnose_epochs(asked_for, rows, ()) if said.code == "shuffled_labels")
    assert said.severity is Severity.NOTE
    assert "100% of the training labels were drawn at random" in said.what
    better = epochs((1.0, 0.6, 2.5, 0.2), (0.5, 0.8, 3.0, 0.22), (0.2, 0.9, 3.5, 0.19))
    small = facts(train_size=1000, val_size=500, labels_fit=False)
    assert "shuffled_labels" not in codes(progress.diagnose_epochs(small, better, ()))


def test_a_few_images_that_are_not_memorized() -> None:
    stalled = epochs(*[(1.5, 0.45, None, None)] * 20)
    assert codes(progress.diagnose_epochs(facts(train_size=1000), stalled, ())) == ["cannot_fit"]
    limited = facts(train_size=49_800, epoch_size=500)  # with --trainer.limit_train_batches, each epoch has others
    assert codes(progress.diagnose_epochs(limited, stalled, ())) == []
    assert codes(progress.diagnose_epochs(facts(train_size=1000), stalled[:19], ())) == []
    assert codes(progress.diagnose_epochs(facts(train_size=1000), stalled, ("learning_rate_too_low",))) == []
    assert codes(progress.diagnose_epochs(facts(), stalled, ())) == []
    falling = epochs(*[(2.0 - 0.01 * epoch, 0.45, None, None) for epoch in range(20)])
    assert codes(progress.diagnose_epochs(facts(train_size=1000), falling, ())) == []
    slow = epochs(*[(2.0 * 0.998**epoch, 0.45, None, None) for epoch in range(200)])  # a fiftieth in 10 epochs
    assert codes(progress.diagnose_epochs(facts(train_size=1000), slow[:60], ())) == []
    assert codes(progress.diagnose_epochs(facts(train_size=1000), slow, ())) == []
    for remedies, severity in (((), Severity.FATAL), (("augmentation",), Severity.WARNING)):
        (said,) = progress.diagnose_epochs(facts(train_size=1000, remedies=remedies), stalled, ())
        assert said.severity is severity


def test_mixed_images_are_judged_by_the_probe_alone() -> None:
    mixed = facts(train_size=1000, remedies=("mixup",))
    stalled = epochs(*[(1.5, 0.45, None, None)] * 20)
    assert codes(progress.diagnose_epochs(mixed, stalled, ())) == []
    for accuracy, found in ((0.5, ["cannot_fit"]), (0.95, [])):
        probed = [*stalled[:-1], replace(stalled[-1], probe_loss=1.0, probe_acc=accuracy)]
        said = list(progress.diagnose_epochs(mixed, probed, ()))
        assert codes(said) == found
        assert all("--data.mixup 0 " in each.remedy and "cutmix" not in each.remedy for each in said)
        assert codes(progress.diagnose_epochs(facts(train_size=1000), probed, ())) == found


@pytest.mark.parametrize("folder", sorted(REFERENCE.glob("*/version_0")), ids=lambda folder: folder.parent.name)
def test_no_epoch_of_a_sound_run_raises_an_alarm(folder: Path) -> None:
    run = Run(folder)
    remedies = () if run.summary.data.augment == "none" else ("augmentation",)
    data = {key: getattr(run.summary.data, key) for key in ("train_size", "val_size", "label_noise")}
    rows = run.records
    for number in range(1, len(rows) + 1):
        found = progress.diagnose_epochs(facts(remedies=remedies, **data), rows[:number], ())
        assert [diagnosis.code for diagnosis in found if diagnosis.severity is not Severity.NOTE] == []


@pytest.mark.parametrize(
    ("remedies", "severity"), [((), Severity.WARNING), (("dropout", "augmentation flip_crop"), Severity.NOTE)]
)
def test_validation_above_training(remedies: tuple[str, ...], severity: Severity) -> None:
    rows = [(0.50, 0.62), (0.52, 0.64), (0.54, 0.66), (0.56, 0.68)]
    (found,) = progress.validation_above_training(facts(remedies=remedies), rows)
    assert (found.code, found.severity) == ("validation_above_training", severity)
    assert all(remedy in found.what for remedy in remedies)


def test_training_accuracy_lags_behind_when_learning_is_fast() -> None:
    rows = [(0.30, 0.42), (0.50, 0.56), (0.60, 0.64), (0.67, 0.69), (0.72, 0.72)]
    assert codes(progress.validation_above_training(facts(), rows)) == []


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), *layers)


def images() -> torch.Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_logits_that_sum_to_one_by_chance_are_no_softmax() -> None:
    logits = network(nn.Linear(192, 10))
    assert codes(activations.diagnose(measure_layers(logits, images()))) == []
    assert codes(activations.diagnose(measure_layers(logits.append(nn.Softmax(dim=1)), images()))) == [
        "softmax_before_cross_entropy"
    ]
    assert codes(activations.diagnose(measure_layers(logits[:-1].append(nn.LogSoftmax(dim=1)), images()))) == []


def test_a_small_last_layer_is_no_fault() -> None:
    last = nn.Linear(64, 10, bias=False)
    nn.init.normal_(last.weight, std=1e-5)
    layers = network(nn.Linear(192, 64), nn.ReLU(), last)
    assert codes(activations.diagnose(measure_layers(layers, images()))) == []


def test_images_that_are_not_finite() -> None:
    broken = images()
    broken[0, 0, 0, 0] = float("nan")
    (found,) = activations.diagnose(measure_layers(network(nn.Linear(192, 10)), broken))
    assert (found.code, found.layers) == ("not_finite", ("input",))


def test_a_first_batch_of_zeros_ends_no_run() -> None:
    found = activations.diagnose(measure_layers(network(nn.Linear(192, 10)), torch.zeros_like(images())))
    assert "activations_explode" not in codes(found)


def test_a_trained_layer_is_dead_for_good_if_two_probes_in_a_row_say_so() -> None:
    dead = nn.Linear(192, 8)
    nn.init.constant_(dead.bias, -100)
    seen = measure_layers(network(dead, nn.ReLU(), nn.Linear(8, 3)), images())
    before = activations.without_output(seen)
    assert len(before) == 1
    severity = [next(iter(activations.dead_relus(seen, *more))).severity for more in ((0,), (50,), (100, before))]
    assert severity == [Severity.FATAL, Severity.WARNING, Severity.FATAL]


def test_measuring_leaves_the_network_as_it_was() -> None:
    layers = network(nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 3))
    layers[3].eval()
    before, generator = pickle.dumps(layers), torch.get_rng_state()
    seen = measure_layers(layers, images())
    assert pickle.dumps(layers) == before, "weights, buffers, modes and hooks"
    assert torch.equal(torch.get_rng_state(), generator)
    assert [layer.name for layer in seen.layers] == ["0", "1", "2", "3", "4", "5"]
    normalized = next(layer for layer in seen.layers if layer.name == "2")
    assert normalized.size == pytest.approx(1, rel=0.01), "the batch's own statistics"


def test_measurements_of_a_layer() -> None:
    layer = nn.Linear(192, 4)
    nn.init.zeros_(layer.weight)
    layer.bias = nn.Parameter(torch.tensor([-1.0, -1.0, -1.0, 3.0]))
    seen = measure_layers(network(layer, nn.ReLU()), images())
    linear, relu = seen.layers[1:]
    assert linear.size == pytest.approx(math.sqrt(3))
    assert (linear.spread, linear.dead) == (0, None)
    assert (relu.size, relu.dead, relu.shape) == (1.5, 0.75, (4,))


def test_gradients_are_judged_by_two_measurements() -> None:
    def layers(*norms: float) -> list[gradients.Gradient]:
        return [gradients.Gradient(str(number), "Linear", norm, 1.0) for number, norm in enumerate(norms)]

    sound, wild, faint = layers(0.1, 0.5), layers(1e5, 0.5), layers(1e-9, 0.5)
    assert codes(gradients.diagnose(sound, sound)) == []
    assert codes(gradients.diagnose(wild, sound)) == codes(gradients.diagnose(sound, wild)) == []
    assert codes(gradients.diagnose(wild, wild)) == ["gradients_explode"]
    (found,) = gradients.diagnose(faint, faint)
    assert (found.code, found.layers) == ("gradients_vanish", ("0",))
    assert codes(gradients.diagnose(faint, ())) == []
    assert codes(gradients.diagnose(layers(0, 0), layers(0, 0))) == [], "no layer has more than another"


def test_relative_changes() -> None:
    first = nn.Linear(192, 64)
    layers = network(first, nn.Linear(64, 10))
    before = gradients.sample(layers)
    with torch.no_grad():
        first.weight.mul_(1.5)
    assert gradients.relative_changes(before, gradients.sample(layers)) == pytest.approx([0.5, 0])
    layers[-1].requires_grad_(False)
    assert gradients.relative_changes(before, gradients.sample(layers)) == pytest.approx([0.5]), "none of frozen layers"


def test_validation_of_other_classes_than_training() -> None:
    names = ("cat", "dog", "owl")
    labels = torch.arange(1500) % 3
    assert codes(data.validation_unlike_training(labels[:1000], labels[1000:], names)) == []
    assert codes(data.validation_unlike_training(labels, torch.tensor([], dtype=torch.int64), names)) == []
    rare = torch.tensor([0] * 90 + [1] * 10)
    assert codes(data.validation_unlike_training(rare, torch.tensor([0] * 9 + [1]), names)) == []
    (found,) = data.validation_unlike_training(torch.tensor([0, 1, 2] * 40), torch.ones(63, dtype=torch.int64), names)
    assert found.severity is Severity.WARNING
    assert "dog is 33% of 120 training images and 100% of 63 validation images" in found.evidence


def test_duplicates_are_found_pixel_for_pixel() -> None:
    pixels = torch.randint(0, 255, (50, 5, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[41], pixels[47] = pixels[3], pixels[3]
    pixels[44] = pixels[5]
    pixels[44, 0, 0, 0] += 1
    assert data.duplicates(pixels[:40], pixels[40:]) == 2
    assert data.duplicates(pixels[:40], pixels[40:41]) == 0


def test_a_few_images_of_a_class_are_a_matter_of_chance() -> None:
    assert codes(data.class_imbalance(torch.tensor([0] * 16 + [1] * 5), ("a", "b"))) == []
    assert codes(data.class_imbalance(torch.tensor([0] * 1600 + [1] * 500), ("a", "b"))) == ["class_imbalance"]
    assert codes(data.class_imbalance(torch.tensor([0] * 160), ("a", "b"))) == ["single_class"]


@pytest.fixture
def optimizer() -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def test_the_end_of_a_schedule(optimizer: Optimizer) -> None:
    linear = schedules.LinearLR(optimizer, total_iters=5)
    for schedule, steps in (
        (schedules.StepLR(optimizer, 10), 11),
        (schedules.MultiStepLR(optimizer, [20, 30]), 31),
        (schedules.CosineAnnealingLR(optimizer, 40), 40),
        (schedules.CosineAnnealingWarmRestarts(optimizer, 7), 7),
        (linear, 5),
        (schedules.SequentialLR(optimizer, [linear, schedules.CosineAnnealingLR(optimizer, 35)], [5]), 40),
        (schedules.SequentialLR(optimizer, [linear, schedules.ExponentialLR(optimizer, 0.9)], [5]), 6),
        (schedules.ExponentialLR(optimizer, 0.9), None),
        (schedules.LambdaLR(optimizer, lambda epoch: 1.0), None),
        (schedules.ReduceLROnPlateau(optimizer), None),
        (schedules.OneCycleLR(optimizer, 0.1, total_steps=100), 99),
    ):
        assert length(schedule) == steps, schedule
        assert codes(schedule_cut_short(schedule, "epoch", steps or 1, 1000)) == []
        if steps is not None:
            assert codes(schedule_cut_short(schedule, "epoch", steps - 1, 1000)) == ["schedule_cut_short"]


def test_the_steps_that_a_schedule_allows(optimizer: Optimizer) -> None:
    linear, cycle = schedules.LinearLR(optimizer, total_iters=5), schedules.OneCycleLR(optimizer, 0.1, total_steps=100)
    for schedule, steps in (
        (cycle, 100),
        (schedules.SequentialLR(optimizer, [linear, cycle], [5]), 105),
        (schedules.SequentialLR(optimizer, [cycle, linear], [120]), 100),
        (schedules.SequentialLR(optimizer, [cycle, linear], [100]), None),
        (schedules.ChainedScheduler([linear, cycle], optimizer), 100),
        (schedules.ChainedScheduler([linear], optimizer), None),
        (schedules.CosineAnnealingLR(optimizer, 40), None),
    ):
        assert capacity(schedule) == steps, schedule
    cycle = schedules.OneCycleLR(optimizer, 0.1, total_steps=100)  # SequentialLR has stepped the other one back
    for _ in range(100):
        optimizer.step()
        cycle.step()
    with pytest.raises(ValueError, match="Tried to step 101 times"):
        cycle.step()


def test_images_of_a_single_class() -> None:
    labels, names = torch.ones(100, dtype=torch.int64), ("cat", "ship", "frog")
    (found,) = data.class_imbalance(labels, names)
    assert (found.code, found.severity) == ("single_class", Severity.FATAL)
    assert "100 of ship, none of the other 2" in found.evidence
    assert str(data.chance(labels, 3)) == "0.0"
    assert codes(data.class_imbalance(0 * labels, ("ship",))) == []


def test_a_schedule_of_steps_that_goes_by_epochs(optimizer: Optimizer) -> None:
    cycle = schedules.OneCycleLR(optimizer, 0.1, total_steps=3200)
    (found,) = schedule_cut_short(cycle, "epoch", 40, 3200)
    assert found.remedy == "--model.lr_scheduler_interval step"
    cycle = schedules.OneCycleLR(optimizer, 0.1, total_steps=60)  # which torch means to be stepped after every batch
    (found,) = schedule_cut_short(cycle, "epoch", 12, 72)
    assert found.remedy == "--model.lr_scheduler_interval step"
    (found,) = schedule_cut_short(cycle, "epoch", 12, 48)
    assert found.remedy == "--trainer.max_epochs 59, or a OneCycleLR of at most 12 epochs"
    (found,) = schedule_cut_short(schedules.StepLR(optimizer, 25), "epoch", 2, 3200)
    assert found.remedy == "--trainer.max_epochs 26, or a StepLR of at most 2 epochs"


@pytest.mark.parametrize(
    ("sure", "images", "found"),
    [(0.7, 500, ["over_confident"]), (0.59, 5000, []), (0.7, 20, []), (0.4, 500, [])],  # 20 images cannot tell
)
def test_a_network_that_is_surer_than_it_is_right(sure: float, images: int, found: list[str]) -> None:
    assert codes(confidence.over_confident(sure, 0.5, 0.2, images)) == found


def pictures(number: int = 300) -> torch.Tensor:
    return torch.randint(0, 256, (number, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def severities(diagnoses: Any) -> list[tuple[str, str]]:
    return [(diagnosis.code, diagnosis.severity.value) for diagnosis in diagnoses]


def test_images_that_show_nothing_are_reported() -> None:
    train = torch.arange(1, 301)
    sound = pictures(302)
    assert severities(data.images_show_nothing(sound, train)) == []

    few = sound.clone()
    few[5] = 15  # black
    few[7] = torch.tensor([200, 30, 0], dtype=torch.uint8)
    few[0] = few[301] = 0  # not for training
    assert severities(data.images_show_nothing(few, train)) == [
        ("images_black", "note"),
        ("images_of_one_colour", "note"),
    ]
    assert [found.evidence[:8] for found in data.images_show_nothing(few, train)] == ["1 of 300", "1 of 300"]
    few[7, 31, 31, 2] = 1
    few[5, 0, 0, 0] = 16
    assert severities(data.images_show_nothing(few, train)) == []

    twelve_of_16_bits = sound // 16
    (found,) = data.images_show_nothing(twelve_of_16_bits, train)
    assert (found.code, found.severity) == ("images_black", Severity.WARNING)
    assert "16 bits" in found.remedy
    ten_of_16_bits = sound // 64
    assert severities(data.images_show_nothing(ten_of_16_bits, train)) == [
        ("images_alike", "fatal"),
        ("images_black", "warning"),
    ]

    same = sound[:1].repeat(302, 1, 1, 1)
    assert severities(data.images_show_nothing(same, train)) == [("images_alike", "fatal")]
    same[300, 9, 9, 0] ^= 128
    assert severities(data.images_show_nothing(same, train)) == []
    assert severities(data.images_show_nothing(same, train[:1])) == []
    colours_by_class = (torch.arange(302) % 3 * 80).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    assert severities(data.images_show_nothing(colours_by_class, train)) == [
        ("images_black", "warning"),
        ("images_of_one_colour", "warning"),
    ]


def test_a_class_without_training_images_is_reported() -> None:
    labels = torch.tensor([0, 2] * 50)
    assert severities(data.class_without_images(labels, ("a", "b", "c", "d"))) == [("class_without_images", "warning")]
    (found,) = data.class_without_images(labels, ("a", "b", "c", "d"))
    assert "none of 100 training images is of b, d" in found.evidence
    assert severities(data.class_without_images(torch.tensor([0, 1, 2]), ("a", "b", "c"))) == []
    assert severities(data.class_without_images(torch.tensor([0, 0]), ("a", "b"))) == [], "another rule's"
