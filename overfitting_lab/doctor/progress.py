"""Rules about the losses and accuracies of steps and epochs while a network trains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from overfitting_lab.doctor.activations import SMALL_OUTPUT
from overfitting_lab.doctor.diagnosis import Diagnosis, Severity
from overfitting_lab.runs.epochs import EpochRecord, has_probe, over_fits_since

PLATEAU = 20  # optimizer steps a weight layer that a sound network may stay at chance level: docs/doctor.md
HOPELESS = 3  # the run cannot succeed after so many times the plateau
LEFT = 0.03  # below the chance level, as a share of it: so much less loss shows that something was learned
EXPLODED = 1000  # times the chance level: sound runs in docs/doctor.md stay below 10 in their first steps
WORSE = 1.1  # times the chance level: a loss above it shows that the steps are too large
STILL = 3e-5  # a step that changes a layer's weights by a smaller fraction of their norm hardly changes them
SMALL = 1000  # training images that any network here can memorize
PATIENCE = 3  # epochs or measurements in a row that a rule waits for
MIXING = ("mixup", "cutmix")  # remedies that mix training images, so that no network names all of them correctly
LONG = 20  # epochs in which a network can memorize 1,000 images


@dataclass(frozen=True)
class Facts:
    """Facts about a run that are known before its first step."""

    classes: int  # number of classes
    chance: float  # loss in nats of naming each class as often as it occurs
    depth: int  # number of convolutions and linear layers
    train_size: int  # number of training images
    val_size: int  # number of validation images
    epoch_size: int  # number of training images of an epoch
    remedies: tuple[
        str, ...
    ]  # that make training harder than validation: dropout, augmentation, mixing, label noise, ...
    labels_fit: bool | None  # whether a linear classifier on the pixels beats chance; None if there are too few images
    label_noise: float  # fraction of the training labels that --data.label_noise drew at random


def not_learning(
    facts: Facts, losses: Sequence[float], changes: float, causes: Sequence[str], step: int, *, certain: bool = True
) -> Iterator[Diagnosis]:
    """Report a loss that stays at chance level for longer than is normal for the network's depth.

    ``losses`` are means of equally many steps, of all ``step`` optimizer steps so far. The last measured step moved the
    middle layer's weights by the fraction ``changes`` of their norm. ``causes`` are earlier findings that explain it.
    They are ``certain`` if one of them is fatal.
    """
    plateau = PLATEAU * facts.depth
    left = 1 - LEFT * (1 - facts.label_noise)  # noise hides what was learned
    if step < plateau or len(losses) < PATIENCE or min(losses) < left * facts.chance:
        return
    evidence = (
        f"mean losses {', '.join(f'{loss:.3f}' for loss in losses[-4:])}, the last over steps up to {step}; chance "
        f"level is {facts.chance:.3f}; with {facts.depth} layers, up to {plateau} steps at chance level are "
        f"normal" + f"; a step changes the weights by {changes:.1g} of their norm" * math.isfinite(changes)
    )
    if not causes and changes < STILL:
        what = "the steps are so small that the network hardly changes"
        remedy = "a --model.optimizer.lr ten times as large"
        yield Diagnosis("learning_rate_too_low", Severity.WARNING, what, evidence, remedy)
    elif not causes and losses[-1] > WORSE * facts.chance:
        yield too_high(evidence)
    elif facts.labels_fit is False and not facts.label_noise:
        yield shuffled_labels("neither a network nor a linear classifier on the pixels beats chance; " + evidence)
    else:
        what = "the network does no better than chance"
        remedy = f"a --model.optimizer.lr a third as large, or {SMALL_OUTPUT}; vgg16_32.yaml has values that work"
        if causes:
            what, remedy = f"{what}: {', '.join(causes)}", f"the remedy of {', '.join(causes)}"
        fatal = (causes and certain) or step >= HOPELESS * plateau
        yield Diagnosis("stuck_at_chance", Severity.FATAL if fatal else Severity.WARNING, what, evidence, remedy)


def learning_rate_too_high(facts: Facts, losses: Sequence[float], causes: Sequence[str]) -> Iterator[Diagnosis]:
    """Report a loss that was good and is now worse than chance level, or that steps have made enormous."""
    if losses and losses[-1] > EXPLODED * facts.chance and "activations_explode" not in causes:
        yield too_high(f"the mean loss is {losses[-1]:.3g}; chance level is {facts.chance:.3f}")
    elif len(losses) > 1 and losses[-1] > max(WORSE * facts.chance, 2 * min(losses)):
        yield too_high(f"the loss was {min(losses):.3f} and is {losses[-1]:.3g}; chance level is {facts.chance:.3f}")


def too_high(evidence: str) -> Diagnosis:
    """Return the diagnosis of steps that are too large."""
    what = "the steps are so large that the loss is worse than chance level"
    remedy = "a --model.optimizer.lr a tenth as large, or --trainer.gradient_clip_val 1"
    return Diagnosis("learning_rate_too_high", Severity.WARNING, what, evidence, remedy)


def diagnose_epochs(facts: Facts, epochs: Sequence[EpochRecord], causes: Sequence[str]) -> Iterator[Diagnosis]:
    """Report all that the epochs so far show; ``causes`` are earlier findings that explain why nothing is learned."""
    yield from learning_rate_too_high(facts, [epoch.train_loss for epoch in epochs], causes)
    if not causes:
        yield from cannot_fit(facts, epochs)
    accuracies = [(epoch.train_acc, epoch.val_acc) for epoch in epochs if epoch.val_acc is not None]
    if accuracies:
        yield from labels_without_meaning(facts, accuracies)
        yield from validation_above_training(facts, accuracies)
        yield from over_fitting(facts, epochs)


def cannot_fit(facts: Facts, epochs: Sequence[EpochRecord]) -> Iterator[Diagnosis]:
    """Report at most 1,000 images that the network does not memorize, and a loss that no longer falls.

    The later a run is, the more epochs are compared: methods against over-fitting slow learning down for hundreds of
    epochs. With mixing, only the probe tells whether the images are memorized.
    """
    mixed = [f" --data.{name} 0" for name in MIXING if name in facts.remedies]
    if facts.train_size > SMALL or len(epochs) < LONG or (mixed and not has_probe(epochs)):
        return
    part = max(LONG // 2, len(epochs) // 3)
    last, before = (fmean(epoch.train_loss for epoch in each) for each in (epochs[-part:], epochs[-2 * part : -part]))
    best = max(accuracy for epoch in epochs for accuracy in (epoch.train_acc, epoch.probe_acc) if accuracy is not None)
    if best >= 0.9 or last < 0.98 * before:
        return
    harder = f"; {' and '.join(facts.remedies)} make it harder" if facts.remedies else ""
    yield Diagnosis(
        "cannot_fit",
        Severity.WARNING if facts.remedies else Severity.FATAL,
        "the network cannot even memorize a few images",
        f"accuracy {best:.1%} at best on {facts.train_size:,} training images after {len(epochs)} epochs; mean loss of "
        f"the last {part} epochs {last:.3f}, of the {part} before {before:.3f}{harder}",
        f"--model.dropout 0 --data.augment none --data.cutout 0{''.join(mixed)} --model.optimizer.weight_decay 0; then "
        "more --model.hidden_features, or another --model.optimizer.lr",
        epoch=len(epochs) - 1,
    )


def shuffled_labels(evidence: str) -> Diagnosis:
    """Return the diagnosis of labels that do not belong to their images."""
    return Diagnosis(
        "shuffled_labels",
        Severity.FATAL,
        "the labels look shuffled: they do not belong to the images",
        evidence,
        "look at the training images in TensorBoard (tensorboard --logdir lightning_logs); delete the prepared images "
        "beside the data, and check that each image lies in the folder of its class",
    )


def labels_without_meaning(facts: Facts, accuracies: Sequence[tuple[float, float]]) -> Iterator[Diagnosis]:
    """Report training labels that are memorized, although validation shows that they mean nothing.

    ``accuracies`` holds the training and the validation accuracy of each epoch.
    """
    recent, chance = accuracies[-PATIENCE:], 1 / facts.classes
    noise = 3 * math.sqrt(chance * (1 - chance) / facts.val_size)
    meaningless = all(train > chance + 0.1 and val <= chance + noise for train, val in recent)
    if facts.labels_fit is not False or len(recent) < PATIENCE or not meaningless:
        return
    train, val = recent[-1]
    evidence = f"training accuracy {train:.1%}, validation {val:.1%} of {facts.val_size:,} images; chance {chance:.1%}"
    if facts.label_noise:
        what = f"{facts.label_noise:.0%} of the training labels were drawn at random, and the network memorizes them"
        remedy = "none needed: --data.label_noise asked for it"
        yield Diagnosis("shuffled_labels", Severity.NOTE, what, evidence, remedy)
    else:
        evidence += f"; the same in {PATIENCE} epochs in a row; a linear classifier on the pixels does no better"
        yield shuffled_labels(evidence)


def validation_above_training(facts: Facts, accuracies: Sequence[tuple[float, float]]) -> Iterator[Diagnosis]:
    """Report validation better than training in several epochs: dropout, augmentation, cutout, mixing or a leak.

    ``accuracies`` holds the training and the validation accuracy of each epoch. Training accuracy is measured while the
    weights change, so the validation of an epoch lies between its training and the next.
    """
    pairs = [((now[0] + after[0]) / 2, now[1]) for now, after in pairwise(accuracies[-PATIENCE - 1 :])]
    share = 1 / facts.val_size + 1 / facts.epoch_size
    # Four standard deviations, because the same images are easy in every epoch.
    better = all(val > train + 4 * math.sqrt(val * (1 - val) * share) for train, val in pairs)
    if len(pairs) < PATIENCE or not better:
        return
    train, val = pairs[-1]
    severity, remedy = Severity.NOTE, "none needed: this is expected"
    what = f"validation is better than training, because only training has {' and '.join(facts.remedies)}"
    if not facts.remedies:
        severity = Severity.WARNING
        what = "validation is better than training, and nothing makes training harder: a leak, or wrong training labels"
        remedy = "look for copies of training images in the validation set; --data.split_seed 1 splits them anew"
    evidence = f"validation accuracy {val:.1%}, training {train:.1%}; the same in {PATIENCE} epochs in a row"
    yield Diagnosis("validation_above_training", severity, what, evidence, remedy)


def over_fitting(facts: Facts, epochs: Sequence[EpochRecord]) -> Iterator[Diagnosis]:
    """Note a validation loss that rises while the training loss falls; :func:`over_fits_since` has the rule."""
    lowest = over_fits_since(epochs)
    if lowest is None:
        return
    last = next(epoch for epoch in reversed(epochs) if epoch.val_loss is not None)
    flags = {"dropout": "--model.dropout 0.5, ", "augmentation": "--data.augment flip_crop, "}
    untried = [flag for name, flag in flags.items() if not any(had.startswith(name) for had in facts.remedies)]
    yield Diagnosis(
        "over_fitting",
        Severity.NOTE,
        f"the network has over-fitted since epoch {lowest.epoch + 2}: it gets worse on new images",
        f"validation loss {lowest.val_loss:.3f} after epoch {lowest.epoch + 1} and {last.val_loss:.3f} after epoch "
        f"{last.epoch + 1}; training loss {lowest.train_loss:.3f} and {epochs[-1].train_loss:.3f}",
        f"{''.join(untried)}more --model.optimizer.weight_decay, or more images: --config regularized.yaml",
        epoch=lowest.epoch + 1,
    )
