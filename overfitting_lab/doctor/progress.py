"""What the losses of steps and epochs say while a network trains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity
from overfitting_lab.runs.epochs import EpochRecord, over_fits_since

PLATEAU = 20  # optimizer steps a weight layer in which a sound network leaves the loss of guessing: docs/doctor.md
HOPELESS = 3  # times as many after which the run cannot succeed
LEFT = 0.97  # of the loss of guessing; below it something has been learned
WORSE = 1.1  # times the loss of guessing; above it the steps throw the weights about
STILL = 3e-5  # of its own norm that a step moves a layer's weights by; less is next to nothing
SMALL = 1000  # training images that any network here can learn by heart
PATIENCE = 3  # epochs, or looks, that a curve must hold
LONG = 20  # epochs in which 1,000 images can be learned by heart


@dataclass(frozen=True)
class Facts:
    """What is known of a run before its first step.

    Attributes:
        classes: number of classes.
        chance: loss in nats of guessing each class as often as it occurs.
        depth: number of convolutions and linear layers.
        train_size: number of training images.
        val_size: number of validation images.
        remedies: what makes training harder than validation, by name: dropout, augmentation.
        labels_fit: whether a straight line through the pixels beats guessing; none where there are too few images.
        label_noise: fraction of the training labels that were drawn at random, as asked for.
    """

    classes: int
    chance: float
    depth: int
    train_size: int
    val_size: int
    remedies: tuple[str, ...]
    labels_fit: bool | None
    label_noise: float

    @property
    def plateau(self) -> int:
        """Optimizer steps that may go by before the loss leaves that of guessing."""
        return PLATEAU * self.depth


def not_learning(
    facts: Facts, losses: Sequence[float], changes: float, causes: Sequence[str], step: int
) -> Iterator[Diagnosis]:
    """A loss that is no better than guessing after the plateau that is normal for the network's depth.

    Args:
        facts: of the run.
        losses: mean losses of equal stretches of steps, from the first step on.
        changes: how far the last step looked at moved the weights of the middle layer, against their norm.
        causes: codes of what was found before and explains it.
        step: optimizer steps so far.
    """
    if step < facts.plateau or len(losses) < PATIENCE or min(losses) < LEFT * facts.chance:
        return
    shown = ", ".join(f"{loss:.3f}" for loss in losses[-4:])
    evidence = (
        f"mean losses {shown}, the last over steps up to {step}; guessing has {facts.chance:.3f}; for {facts.depth} "
        f"layers up to {facts.plateau} steps of it are normal; a step moves the weights by {changes:.1g} of their norm"
    )
    severity = Severity.FATAL if causes or step >= HOPELESS * facts.plateau else Severity.WARNING
    if facts.labels_fit is False and not facts.label_noise:
        yield shuffled_labels("no network and no straight line through the pixels beats guessing; " + evidence, step)
    elif not causes and changes < STILL:
        yield Diagnosis(
            "learning_rate_too_low",
            Severity.WARNING,
            "the steps are so small that the network stays as it is",
            evidence,
            "ten times the --model.optimizer.lr",
            step=step,
        )
    elif not causes and losses[-1] > WORSE * facts.chance:
        yield too_high(evidence, step)
    else:
        yield Diagnosis(
            "stuck_at_chance",
            severity,
            "the network guesses" + (f": {', '.join(causes)}" if causes else ""),
            evidence,
            "what is said there"
            if causes
            else "a third of the --model.optimizer.lr, or --model.initialization "
            "lightning_modules.initialization.SmallOutput; --config vgg16_32.yaml has both right",
            step=step,
        )


def learning_rate_too_high(facts: Facts, losses: Sequence[float], step: int) -> Iterator[Diagnosis]:
    """A loss that was good and is worse than guessing."""
    if len(losses) > 1 and losses[-1] > max(WORSE * facts.chance, 2 * min(losses)):
        yield too_high(f"the loss was {min(losses):.3f} and is {losses[-1]:.3g}; guessing has {facts.chance:.3f}", step)


def too_high(evidence: str, step: int) -> Diagnosis:
    """Steps that throw the weights about."""
    return Diagnosis(
        "learning_rate_too_high",
        Severity.WARNING,
        "the steps are so large that the loss is worse than that of guessing",
        evidence,
        "a tenth of the --model.optimizer.lr, or --trainer.gradient_clip_val 1",
        step=step,
    )


def epochs_say(facts: Facts, epochs: Sequence[EpochRecord], causes: Sequence[str], step: int) -> Iterator[Diagnosis]:
    """All that the epochs so far show.

    Args:
        facts: of the run.
        epochs: from the first on.
        causes: codes of what was found before and explains that nothing is learned.
        step: optimizer steps so far.
    """
    yield from learning_rate_too_high(facts, [epoch.train_loss for epoch in epochs], step)
    yield from validation_not_finite(epochs, causes, step)
    if not causes:
        yield from cannot_fit(facts, epochs, step)
    accuracies = [
        (epoch.train_acc, epoch.val_acc)
        for epoch in epochs
        if epoch.val_loss is not None and epoch.val_acc is not None and math.isfinite(epoch.val_loss)
    ]
    if accuracies:
        yield from labels_without_meaning(facts, accuracies, step)
        yield from validation_above_training(facts, accuracies, step)
        yield from over_fitting(facts, epochs, step)


def validation_not_finite(epochs: Sequence[EpochRecord], causes: Sequence[str], step: int) -> Iterator[Diagnosis]:
    """A validation loss that is infinite or NaN, though training has not come to that yet."""
    last = epochs[-1]
    if last.val_loss is None or math.isfinite(last.val_loss):
        return
    evidence = f"in epoch {len(epochs)}, mean training loss {last.train_loss:.3g}, validation loss {last.val_loss}"
    yield Diagnosis(
        "not_finite",
        Severity.FATAL,
        "the validation loss is no finite number",
        evidence,
        "a smaller --model.optimizer.lr, or --trainer.precision 32-true",
        epoch=len(epochs) - 1,
        step=step,
    )
    if "activations_explode" not in causes:
        yield too_high(evidence, step)


def cannot_fit(facts: Facts, epochs: Sequence[EpochRecord], step: int) -> Iterator[Diagnosis]:
    """A thousand images that are not learned by heart, and a loss that has stopped falling."""
    if facts.train_size > SMALL or len(epochs) < LONG:
        return
    half = LONG // 2
    last, before = (fmean(epoch.train_loss for epoch in part) for part in (epochs[-half:], epochs[-LONG:-half]))
    best = max(epoch.train_acc for epoch in epochs)
    if best >= 0.9 or last < 0.98 * before:
        return
    remedies = f"; {' and '.join(facts.remedies)} make it harder" if facts.remedies else ""
    yield Diagnosis(
        "cannot_fit",
        Severity.FATAL,
        "the network cannot even learn a few images by heart",
        f"training accuracy {best:.1%} at best on {facts.train_size:,} images after {len(epochs)} epochs; mean loss of "
        f"the last {half} epochs {last:.3f}, of the {half} before {before:.3f}{remedies}",
        "--model.dropout 0 --data.augment none --model.optimizer.weight_decay 0; then more --model.hidden_features, or "
        "another --model.optimizer.lr",
        epoch=len(epochs) - 1,
        step=step,
    )


def shuffled_labels(evidence: str, step: int) -> Diagnosis:
    """Labels that have nothing to do with their images."""
    return Diagnosis(
        "shuffled_labels",
        Severity.FATAL,
        "the labels look shuffled: they have nothing to do with the images",
        evidence,
        "look at the training images in TensorBoard (tensorboard --logdir lightning_logs); delete the prepared images "
        "beside the data, and check that each image lies in the folder of its class",
        step=step,
    )


def labels_without_meaning(facts: Facts, accuracies: Sequence[tuple[float, float]], step: int) -> Iterator[Diagnosis]:
    """A network that learns its training labels, and none of it holds for validation images.

    Args:
        facts: of the run.
        accuracies: of training and validation, an epoch each.
        step: optimizer steps so far.
    """
    recent = accuracies[-PATIENCE:]
    if facts.labels_fit is not False or len(recent) < PATIENCE:
        return
    guess = 1 / facts.classes
    noise = 3 * math.sqrt(guess * (1 - guess) / facts.val_size)
    if not all(train > guess + 0.1 and val <= guess + noise for train, val in recent):
        return
    train, val = recent[-1]
    if facts.label_noise:
        yield Diagnosis(
            "shuffled_labels",
            Severity.NOTE,
            f"{facts.label_noise:.0%} of the training labels were drawn at random, and are learned by heart",
            f"training accuracy {train:.1%}, validation accuracy {val:.1%}, where guessing has {guess:.1%}",
            "nothing: --data.label_noise asked for it",
            step=step,
        )
        return
    yield shuffled_labels(
        f"training accuracy {train:.1%}, and validation accuracy {val:.1%} of {facts.val_size:,} images, where "
        f"guessing has {guess:.1%}; so in {PATIENCE} epochs one after the other; a straight line through the pixels "
        "does no better",
        step,
    )


def validation_above_training(
    facts: Facts, accuracies: Sequence[tuple[float, float]], step: int
) -> Iterator[Diagnosis]:
    """Validation better than training, epoch after epoch: dropout or augmentation, or a leak.

    Args:
        facts: of the run.
        accuracies: of training and validation, an epoch each; training accuracy is taken while the weights move, so
            that an epoch's validation stands between two of training.
        step: optimizer steps so far.
    """
    recent = accuracies[-PATIENCE - 1 :]
    if len(recent) <= PATIENCE:
        return
    pairs = [((now[0] + after[0]) / 2, now[1]) for now, after in pairwise(recent)]
    # Four standard deviations, because the same images are easy in every epoch.
    noise = [4 * math.sqrt(val * (1 - val) * (1 / facts.val_size + 1 / facts.train_size)) for _, val in pairs]
    if not all(val > train + spread for (train, val), spread in zip(pairs, noise, strict=True)):
        return
    train, val = pairs[-1]
    evidence = f"validation accuracy {val:.1%}, training {train:.1%}; so in {PATIENCE} epochs one after the other"
    if facts.remedies:
        yield Diagnosis(
            "validation_above_training",
            Severity.NOTE,
            f"validation is better than training, as {' and '.join(facts.remedies)} make it: training images alone "
            "have them",
            evidence,
            "nothing: it is as it should be",
            step=step,
        )
    else:
        yield Diagnosis(
            "validation_above_training",
            Severity.WARNING,
            "validation is better than training without dropout or augmentation: a leak, or wrong training labels",
            evidence,
            "look for copies of training images among those for validation; --data.split_seed 1 divides them anew",
            step=step,
        )


def over_fitting(facts: Facts, epochs: Sequence[EpochRecord], step: int) -> Iterator[Diagnosis]:
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
        f"the network over-fits since epoch {lowest.epoch + 2}: it memorizes the training images",
        f"validation loss {lowest.val_loss:.3f} after epoch {lowest.epoch + 1} and {last.val_loss:.3f} after epoch "
        f"{last.epoch + 1}; training loss {lowest.train_loss:.3f} and {epochs[-1].train_loss:.3f}",
        f"{''.join(untried)}--model.optimizer.weight_decay 1e-4, or more images: --config regularized.yaml",
        epoch=lowest.epoch + 1,
        step=step,
    )
