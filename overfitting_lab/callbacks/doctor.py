"""The run doctor as a callback: probes a run, and says what is wrong with it and what to do."""

import math
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, median
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

import overfitting_lab.doctor.data as data_rules
from lightning_modules.classifier import scaler_of
from lightning_modules.schedules import in_run
from overfitting_lab.callbacks.epochs import DivergedError, recorder_of
from overfitting_lab.callbacks.images import images_of
from overfitting_lab.callbacks.logger import TENSORBOARD, RunLogger
from overfitting_lab.callbacks.run_length import limited, run_length
from overfitting_lab.doctor import Diagnosis, Severity, activations, gradients, progress
from overfitting_lab.doctor.confidence import over_confident
from overfitting_lab.doctor.layers import Measurement, measure_layers, weighted_layers
from overfitting_lab.doctor.schedule import schedule_cut_short
from overfitting_lab.runs.calibration import at_temperature, calibration
from overfitting_lab.runs.notes import attempt

EVERY = 50  # optimizer steps between two probes
IMAGES = 32  # images of a batch that a probe uses

Advice = Literal["off", "advise", "stop"]


class HopelessError(Exception):
    """The doctor found that the run cannot succeed. The message is its diagnosis."""


class Doctor(Callback):
    """Report what is wrong with a run: the cause, the evidence and the remedy. Each code is reported once.

    Before the first step the doctor probes the data, the schedule and the layers' outputs for the first batch. Every 50
    steps it probes the loss, the gradients, the size of the step and the ReLUs, after each epoch the metrics. It draws
    no random number, updates no metric and leaves the network unchanged, so that the weights are bit for bit equal to
    the weights of a run without it. Process 0 probes its share of a step and reports.

    With ``stop`` it ends a run that cannot succeed. Without a ``logger`` it writes nothing to TensorBoard.
    """

    _facts: progress.Facts  # of process 0, from the start of training on

    def __init__(self, logger: RunLogger | None, stop: bool = False) -> None:
        self._logger = logger
        self._stop = stop
        self._found: dict[str, Diagnosis] = {}
        self._losses: list[Tensor] = []
        self._means: list[float] = []
        self._gradients: tuple[gradients.Gradient, ...] = ()
        self._gradients_before: tuple[gradients.Gradient, ...] = ()
        self._weights: dict[str, Tensor] = {}
        self._change = float("nan")  # of a layer's weights at the last probe, relative to their norm
        self._images: Tensor | None = None
        self._probed_step = -1
        self._dead: tuple[str, ...] = ()  # layers whose ReLUs were all 0 at the last probe

    @property
    def diagnosis(self) -> list[dict[str, Any]]:
        """The findings so far, as plain values."""
        return [diagnosis.as_dict() for diagnosis in self._found.values()]

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {
            "found": self.diagnosis,
            "losses": [float(loss) for loss in self._losses],
            "means": self._means,
            "change": self._change,
            "dead": list(self._dead),
            "gradients": [vars(layer) for layer in self._gradients_before],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self._found = {found["code"]: Diagnosis.from_dict(found) for found in state_dict["found"]}
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]
        self._means = state_dict["means"]
        self._change = state_dict["change"]
        self._dead = tuple(state_dict.get("dead", ()))
        self._gradients_before = tuple(gradients.Gradient(**layer) for layer in state_dict["gradients"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the data and the schedule."""
        if trainer.global_step:  # a resumed run has probed this step
            self._probed_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        self._facts, found = examine(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
        self._report(found, trainer)
        self._facts = replace(
            self._facts,
            epoch_size=_used(self._facts.train_size, trainer, trainer.limit_train_batches),
            val_size=_used(self._facts.val_size, trainer, trainer.limit_val_batches),
        )
        run = run_length(trainer, trainer.datamodule)  # type: ignore[attr-defined]
        for config in trainer.lr_scheduler_configs:
            if run.total and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                epochs, steps = (
                    in_run({"interval": each, "frequency": config.frequency}, run) for each in ("epoch", "step")
                )
                self._report(schedule_cut_short(config.scheduler, config.interval, epochs, steps), trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        """Probe the layers before the first step."""
        self._images = batch.images if trainer.is_global_zero and len(batch.images) else None
        if trainer.global_step == 0 and self._probed_step < 0:
            self._probed_step = 0
            if self._images is not None:
                self._report(activations.diagnose(self._measure(trainer, pl_module)), trainer)
            self._stop_if_hopeless(trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Find the layer where a loss became NaN or infinite, while the weights that gave it are there.

        Reading the loss makes a GPU wait, so that it is read there only if a probe is due.
        """
        due = trainer.global_step < 2 or (trainer.global_step + 1) % EVERY == 0 or loss.device.type == "cpu"
        if self._images is not None and due and "not_finite" not in self._found and not loss.isfinite():
            self._report_not_finite(trainer, pl_module)
            if trainer.world_size == 1:
                self._stop_if_hopeless(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure the gradients if a probe is due."""
        if trainer.is_global_zero and (trainer.global_step + 1) % EVERY == 0:
            scaler = scaler_of(trainer, optimizer)
            self._gradients = gradients.measure(_network(pl_module), scaler.get_scale() if scaler else 1.0)
            self._weights = gradients.sample(_network(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep the loss; probe if that is due."""
        if self._images is not None:
            self._losses.append(outputs["cross_entropy"])
        step = trainer.global_step
        if step and step % EVERY == 0 and step != self._probed_step:
            self._probed_step = step
            if trainer.is_global_zero:
                self._report(self._probe(trainer, pl_module, step), trainer)
            self._stop_if_hopeless(trainer)
        self._images = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the epoch's metrics."""
        if trainer.is_global_zero:
            self._report(self._not_learning(trainer.global_step), trainer)
            causes = [code for code in self._found if code in CAUSES + EFFECTS]
            self._report(progress.diagnose_epochs(self._facts, recorder_of(trainer).records, causes), trainer)
        self._stop_if_hopeless(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the confidence of the best validation, and print the findings in one line."""
        if trainer.is_global_zero:
            self._report(_over_confident(trainer), trainer)
            codes = ", ".join(f"{found.code} ({found.severity.value})" for found in self._found.values())
            print(f"doctor     {codes or 'nothing to report'}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report a loss that became NaN or infinite between two probes."""
        if isinstance(exception, DivergedError) and trainer.is_global_zero and "not_finite" not in self._found:
            self._report_not_finite(trainer, pl_module, str(exception))

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> Measurement:
        assert self._images is not None
        images = self._images[:IMAGES].to(next(pl_module.parameters()).dtype)
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            return measure_layers(_network(pl_module), images, trainer.precision_plugin.forward_context())

    def _probe(self, trainer: Trainer, pl_module: LightningModule, step: int) -> Iterable[Diagnosis]:
        if self._losses:
            self._means.append(fmean(loss.item() for loss in self._losses))  # of a resumed run, some are on the CPU
            self._losses.clear()
        yield from gradients.diagnose(self._gradients, self._gradients_before)
        self._gradients_before = self._gradients
        if self._images is not None:
            measured = self._measure(trainer, pl_module)
            yield from activations.dead_relus(measured, step, self._dead)
            self._dead = activations.without_output(measured)
        changes = gradients.relative_changes(self._weights, gradients.sample(_network(pl_module)))
        self._change = median(changes) if changes else math.nan  # a network of layers that the doctor does not know
        yield from self._not_learning(step)
        yield from progress.learning_rate_too_high(self._facts, self._means, [*self._found])

    def _not_learning(self, step: int) -> Iterable[Diagnosis]:
        causes = [code for code in self._found if code in CAUSES]
        certain = any(self._found[code].severity is Severity.FATAL for code in causes)
        return progress.not_learning(self._facts, self._means, self._change, causes, step, certain=certain)

    def _report_not_finite(self, trainer: Trainer, pl_module: LightningModule, said: str = "") -> None:
        """Say where NaN or infinity is. ``said`` is what is known of a step that is over."""
        where = f"step {trainer.global_step + (not said)}"
        weights = _network(pl_module).named_parameters()
        lost = dict.fromkeys(name.rpartition(".")[0] for name, weight in weights if not weight.isfinite().all())
        layer = None if lost or self._images is None else self._measure(trainer, pl_module).first_not_finite
        found = activations.not_finite(where, layer, tuple(lost))
        if said and not lost and self._images is None:  # no layer could be measured
            found = replace(found, evidence=said)
        self._report([found], trainer)
        if "activations_explode" not in self._found and found.layers[:1] != ("input",):
            self._report([progress.too_high(f"the loss is NaN or infinite at {where}")], trainer)

    def _report(self, diagnoses: Iterable[Diagnosis], trainer: Trainer) -> None:
        """Report what is new, or more severe than before."""
        for diagnosis in diagnoses:
            known, step = self._found.get(diagnosis.code), trainer.global_step
            if known is None or (diagnosis.severity is Severity.FATAL and known.severity is not Severity.FATAL):
                self._found[diagnosis.code] = diagnosis = replace(diagnosis, step=step)
                print(diagnosis, flush=True)
                if self._logger is not None:
                    with attempt(TENSORBOARD):
                        self._logger.writer().add_text("doctor", str(diagnosis).replace("\n", "  \n"), step)

    def _stop_if_hopeless(self, trainer: Trainer) -> None:
        """End a run that cannot succeed, in all processes at the same step."""
        if not self._stop:
            return
        causes = [found for found in self._found.values() if found.severity is Severity.FATAL]
        fatal = trainer.strategy.broadcast(f"{causes[0].code}: {causes[0].what}" if causes else "")
        if fatal:
            raise HopelessError(f"this run cannot succeed: {fatal}; --doctor advise trains it all the same")


# Codes that explain a loss that does not fall, and codes that report it.
CAUSES = ("softmax_before_cross_entropy", "activations_explode", "activations_vanish", "dead_relus", "gradients_vanish")
EFFECTS = ("stuck_at_chance", "learning_rate_too_high", "learning_rate_too_low", "shuffled_labels")


def examine(datamodule: Any, pl_module: LightningModule) -> tuple[progress.Facts, list[Diagnosis]]:
    """Return what a set-up ``CIFAR10DataModule`` and an ``ImageClassifier`` show before the first step."""
    images, train, val = datamodule.images, datamodule.train_indices, datamodule.val_indices
    labels, classes = images.train_labels[train], len(images.classes)
    known, tested = images.train_images[train], datamodule.test_indices
    found = [
        *data_rules.images_show_nothing(images.train_images, train),
        *data_rules.duplicate_images(data_rules.duplicates(known, images.train_images[val]), len(val)),
        *data_rules.duplicate_images(data_rules.duplicates(known, images.test_images[tested]), len(tested), test=True),
    ]
    missing = list(data_rules.class_without_images(labels, images.classes))
    found += missing or data_rules.class_imbalance(labels, images.classes)
    true = datamodule.true_labels
    found += data_rules.validation_unlike_training(true[train], true[val], images.classes)
    network = _network(pl_module)
    dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in network.modules())
    remedies = {
        "dropout": dropout,
        f"augmentation {datamodule.augment}": datamodule.augment != "none",
        f"cutout {datamodule.cutout}": datamodule.cutout > 0,
        "label noise": datamodule.label_noise > 0,
    }
    remedies |= {name: getattr(datamodule, name) > 0 for name in progress.MIXING}
    facts = progress.Facts(
        classes=classes,
        chance=data_rules.chance(labels, classes),
        depth=max(1, len(weighted_layers(network))),
        train_size=len(train),
        val_size=len(val),
        epoch_size=len(train),
        remedies=tuple(name for name, used in remedies.items() if used),
        labels_fit=data_rules.labels_fit(images.train_images, images.train_labels, train, val, classes),
        label_noise=datamodule.label_noise,
    )
    return facts, found


def _used(images: int, trainer: Trainer, limit: float) -> int:
    """Return the number of images of an epoch that the Trainer's limit leaves, at least 1."""
    size = int(trainer.datamodule.batch_size)  # type: ignore[attr-defined]
    return max(1, min(images, size * limited(-(-images // size), limit)))


def _over_confident(trainer: Trainer) -> Iterable[Diagnosis]:
    record = images_of(trainer)
    if record is None or record.best_validation is None:
        return []
    labels, logits = (each.numpy() for each in record.best_validation)
    found = calibration(at_temperature(logits, 1.0), labels)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return over_confident(found.confidence, accuracy, found.error, len(labels))


def _network(pl_module: LightningModule) -> nn.Module:
    return cast(nn.Module, pl_module.network)
