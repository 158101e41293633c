"""Metrics of a user's own, from torchmetrics or another package, by their class's import path."""

import re
from collections.abc import Callable
from copy import deepcopy

import torch
from torchmetrics import Metric, MetricCollection

from lightning_modules.errors import ModelError
from overfitting_lab.runs.epochs import MINIMIZED, is_maximized

OwnMetrics = dict[str, Callable[[int], Metric]]  # by name; each gets the number of classes
TAKEN = ("loss", "acc", "clean_acc", "memorized_acc", "true_acc")  # names of the project's own metrics


def built(name: str, make: Callable[[int], Metric], num_classes: int) -> Metric:
    """Return a metric that works in a run: it was tried on a logit for each class and a label for each class.

    Raises:
        ModelError: if its name does not fit, or if it gives no single number of logits and labels.
    """
    flag = f"--model.metrics {name}"
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name in TAKEN or hasattr(MetricCollection, name):
        raise ModelError(
            f"{flag}: a metric's name begins with a letter, has letters, digits and _, and is not {', '.join(TAKEN)}, "
            "update or another method of torchmetrics' MetricCollection"
        )
    try:
        metric = make(num_classes)
        metric.update(preds=torch.eye(num_classes), target=torch.arange(num_classes))
        value = metric.compute()
    except Exception as error:  # of any class
        raise ModelError(
            f"{flag} cannot be measured: {type(error).__name__}: {error}\n"
            "a metric here is a class of torchmetrics whose first argument is the number of classes, and whose update "
            "takes preds and target, such as torchmetrics.classification.MulticlassF1Score"
        ) from error
    if not (isinstance(value, torch.Tensor) and value.numel() == 1):
        raise ModelError(
            f"{flag} gives no single number; average it over the classes, often by init_args: {{average: macro}}"
        )
    _check_merging(flag, metric, num_classes)
    metric.reset()
    if metric.higher_is_better is not None and metric.higher_is_better != is_maximized(name):
        ending = f"end in {' or '.join(MINIMIZED)}" if is_maximized(name) else f"not end in {' or '.join(MINIMIZED)}"
        better = "more" if metric.higher_is_better else "less"
        raise ModelError(
            f"{flag}: {better} of {type(metric).__name__} is better, so let its name {ending}, which is how schedules, "
            "callbacks and --monitor know it"
        )
    return metric


def _check_merging(flag: str, metric: Metric, num_classes: int) -> None:
    """Measure a second batch, and the same after restoring the counts of the first, as a resumed run does."""
    name, first = type(metric).__name__, deepcopy(metric.metric_state)
    second = {"preds": torch.eye(num_classes), "target": torch.arange(num_classes).roll(1)}
    try:
        metric.update(**second)
        value = metric.compute()
    except Exception as error:  # of any class
        raise ModelError(f"{flag} cannot be measured twice: {type(error).__name__}: {error}") from error
    try:
        metric.reset()
        metric.merge_state(first)
    except RuntimeError as error:
        raise ModelError(
            f"{flag}: a run that resumes within an epoch adds up the counts of both parts, which {name} refuses; if an "
            f"update of {name} does not depend on earlier ones, write full_state_update = False in its class"
        ) from error
    metric.update(**second)
    if not torch.allclose(metric.compute(), value, equal_nan=True):
        raise ModelError(
            f"{flag}: a run that resumes within an epoch restores the counts of its first part, and then {name} has "
            'another value; keep sums and counts in add_state(..., dist_reduce_fx="sum"), not means, and nothing in '
            "attributes or in metrics inside"
        )
