"""The files that a run writes about itself: config.yaml, metrics.csv, summary.json, curves.png and weights.pth."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from overfitting_lab.callbacks.averaging import average_is_tested
from overfitting_lab.callbacks.clock import clock_of
from overfitting_lab.callbacks.ending import reason, untested
from overfitting_lab.callbacks.epochs import plain, recorder_of
from overfitting_lab.callbacks.images import SMALLEST, images_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.recovery import StoppedError
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.calibration import at_temperature, best_temperature, calibration
from overfitting_lab.runs.checkpoints import load_checkpoint
from overfitting_lab.runs.epochs import last_gap, write_records
from overfitting_lab.runs.figures import curves, save_figure
from overfitting_lab.runs.files import replace_file, write_text
from overfitting_lab.runs.imports import class_path
from overfitting_lab.runs.notes import attempt, in_words, notes
from overfitting_lab.runs.recipe import LAST_COUNTS, changes, flat, own_code
from overfitting_lab.runs.summary import DataSummary, ModelSummary, Summary, TestSummary


class UntrainedError(Exception):
    """There was nothing to train. The message says why."""


class RunSummary(Callback):
    """Write the run's files.

    ``config.yaml`` and ``summary.json`` are written at the start, ``summary.json`` also after every validation and
    epoch and at the end. ``metrics.csv`` gets a row every epoch. ``curves.png`` and ``weights.pth``, the weights of the
    best checkpoint, are written at the end.

    A resumed run replaces its earlier record after its first step. If nothing is left to train, a run that was trained
    to its end keeps its record, and only the result of the new test is added.

    ``config`` returns the complete configuration, ``diagnosis`` the findings of the doctor. ``facts`` are fields of
    :class:`Summary` that are known before the run.
    """

    def __init__(
        self,
        logger: RunLogger,
        config: Callable[[], str],
        facts: dict[str, Any],
        diagnosis: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._logger = logger
        self._config = config
        self._facts = facts
        self._diagnosis = diagnosis
        self._summary: Summary | None = None
        self._first_step = 0  # number of steps at the start
        self._stepped = False
        self._started = self._seconds_before = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell every process the run's folder."""
        self._logger.share(trainer.strategy)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect what is known before the first step, and write it if the run is new."""
        self._started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        optimizer = trainer.optimizers[0]
        settings = {key: value for key, value in optimizer.defaults.items() if isinstance(value, float | int | str)}
        config = self._config()
        self._summary = Summary(
            **self._facts,
            code=self._code(config),
            earlier=self._earlier(config, trainer),
            status="running",
            data=DataSummary(**trainer.datamodule.description()),  # type: ignore[attr-defined]
            model=ModelSummary(class_path(type(pl_module)), sum(weights.numel() for weights in pl_module.parameters())),
            optimizer={
                "class_path": class_path(type(optimizer)),
                **settings,
                "decay_biases": bool(pl_module.decay_biases),
            },
            device=pl_module.device.type,
            precision=trainer.precision,
            world_size=trainer.world_size,
        )
        if not self._logger.resumed:
            write_text(self._logger.files.config, config)
            self._update(trainer)

    def _code(self, config: str) -> dict[str, str]:
        """Return the digests of the user's own modules: all that the run has had, if it was resumed with others."""
        code = own_code(flat(yaml.safe_load(config)))
        before: dict[str, str] = {}
        with contextlib.suppress(RunError):  # a lost summary
            before = Run(self._logger.folder).summary.code if self._logger.resumed else {}
        for name, digests in before.items():
            known = digests.split(", ")
            code[name] = digests if code.get(name) in known else ", ".join([*known, code.get(name, "gone")])
        return code

    def _earlier(self, config: str, trainer: Trainer) -> dict[str, list[Any]]:
        """Return the settings that the training so far had instead of the present ones; see ``Summary.earlier``."""
        if trainer.ckpt_path is None:  # nothing was trained before
            return {}
        if not self._logger.resumed:
            return {"ckpt_path": [str(trainer.ckpt_path)]}
        run, earlier = Run(self._logger.folder), dict[str, list[Any]]()
        with contextlib.suppress(RunError):  # a lost summary
            earlier = dict(run.summary.earlier)
        for name, (before, _) in changes(run.settings, flat(yaml.safe_load(config))).items():
            if name not in LAST_COUNTS:
                earlier[name] = [*earlier.get(name, []), before]
        return earlier

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_before + time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the curves of a new run, after the epochs of a checkpoint that it starts from."""
        self._first_step = trainer.global_step
        if trainer.is_global_zero and not self._logger.resumed:
            self._restore_curves(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Replace the record of a resumed run after its first step."""
        if not self._stepped and trainer.global_step > self._first_step:
            self._stepped = True
            if trainer.is_global_zero and self._logger.resumed:
                self._replace_record(trainer)

    def _replace_record(self, trainer: Trainer) -> None:
        """Replace the earlier record. The summary is first: from then on, the run counts as unfinished."""
        self._update(trainer)
        write_text(self._logger.files.config, self._config())
        self._restore_curves(trainer)
        self._logger.open()

    def _restore_curves(self, trainer: Trainer) -> None:
        """Discard the rows of metrics.csv and the events after the checkpoint."""
        records, metrics = recorder_of(trainer).records, self._logger.files.metrics
        if records or metrics.exists():
            self._logger.discard_events_after(self._first_step, records)
        own = trainer.lightning_module.own_metrics
        replace_file(metrics, lambda path: write_records(path, records, own=own))  # type: ignore[arg-type]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the summary up to date."""
        if trainer.is_global_zero and self._logger.is_open and not trainer.sanity_checking:
            self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            records, own = recorder_of(trainer).records[-1:], pl_module.own_metrics
            write_records(self._logger.files.metrics, records, mode="a", own=own)  # type: ignore[arg-type]
            self._update(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the files.

        Raises:
            UntrainedError: if the run did not train a step, or has more steps than ``max_steps`` already.
        """
        if not self._stepped and (trainer.global_step == 0 or not self._logger.resumed):
            raise UntrainedError(f"nothing was trained: {reason(trainer)}")
        if 0 <= trainer.max_steps < trainer.global_step:
            raise UntrainedError(f"{trainer.global_step} steps are done already: give a higher --trainer.max_steps")
        if not trainer.is_global_zero:
            return
        if not self._stepped:
            self._first_step = trainer.global_step
            if before := self._record_of_a_trained_run():
                self._summary = replace(before, status="finished", reason=reason(trainer))
                return
            self._replace_record(trainer)
        self._draw(trainer)
        self._update(trainer, status="finished", reason=reason(trainer), untested=untested(trainer))

    def _record_of_a_trained_run(self) -> Summary | None:
        """Return the run's earlier summary, if the run was trained to its end."""
        try:
            before = Run(self._logger.folder).summary
        except RunError:
            return None
        return before if before.status == "finished" or before.untested else None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write how the run ended, and the curves up to there."""
        if not (trainer.is_global_zero and self._logger.is_open and self._summary):
            return
        by_user = isinstance(exception, KeyboardInterrupt)
        why = "interrupted by the user" if by_user else in_words(exception)
        interrupted = by_user or isinstance(exception, StoppedError | SIGTERMException)
        ending: dict[str, Any] = {"status": "interrupted" if interrupted else "failed", "reason": why}
        with contextlib.suppress(OSError):  # a full disk may be the reason
            if trainer.state.fn == "fit":
                self._update(trainer, **ending)
                self._draw(trainer)
            elif self._summary.test is None:
                ending["reason"] = f"the test did not come to its end: {why}"
                self._write(replace(self._summary, **ending, untested=ending["reason"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test's result."""
        images = int(pl_module.test_confusion.compute().sum())  # type: ignore[operator, union-attr]
        if self._summary is not None:
            checkpoint = Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last"
            loss, accuracy = (plain(trainer.callback_metrics[name]) for name in ("test_loss", "test_acc"))
            if not self._logger.is_open:
                self._logger.open()
                write_text(self._logger.files.config, self._config())
            averaged = average_is_tested(trainer) or None
            own = {name: plain(trainer.callback_metrics[f"test_{name}"]) for name in pl_module.own_metrics}  # type: ignore[union-attr]
            test = TestSummary(checkpoint, loss, accuracy, images, own=own, **_confidence(trainer), averaged=averaged)
            self._write(replace(self._summary, test=test, untested=None, seconds_of=clock_of(trainer).times))
            self._logger.files.traceback.unlink(missing_ok=True)  # of an earlier failure

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the time that the pictures and predictions took after the test."""
        if trainer.is_global_zero and stage == "test" and self._summary is not None and self._summary.test is not None:
            self._write(replace(self._summary, seconds_of=clock_of(trainer).times))

    def _draw(self, trainer: Trainer) -> None:
        assert self._summary is not None
        records, files = recorder_of(trainer).records, self._logger.files
        if records:
            data = self._summary.data
            title = f"{self._summary.experiment}: {data.train_size:,} training images of {data.name}"
            with attempt("curves.png"):
                save_figure(files.curves, curves(records, title))
        if files.best.is_file():
            state = load_checkpoint(files.best)["state_dict"]
            prefix = "network."
            network = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            replace_file(files.weights, lambda path: torch.save(network, path))

    def _update(self, trainer: Trainer, **changes: Any) -> None:
        assert self._summary is not None
        recorder = recorder_of(trainer)
        last = next((record for record in reversed(recorder.records) if record.val_acc is not None), None)
        gap = last_gap(recorder.records)
        self._write(
            replace(
                self._summary,
                epochs=len(recorder.records),
                global_step=trainer.global_step,
                seconds=round(self._seconds_before + time.perf_counter() - self._started, 3),
                seconds_of=clock_of(trainer).times,
                train_images_per_second=recorder.images_per_second,
                best=recorder.best_metrics,
                last=last and last.metrics,
                generalization_gap=gap and gap.value,
                gap_instrument=gap and gap.instrument,
                diagnosis=self._diagnosis(),
                **changes,
            )
        )

    def _write(self, summary: Summary) -> None:
        self._summary = summary = replace(summary, notes=notes())
        write_text(self._logger.files.summary, summary.to_json())


def _confidence(trainer: Trainer) -> dict[str, float]:
    """Return the fields of :class:`TestSummary` about confidence and calibration."""
    record = images_of(trainer)
    if record is None or record.tested is None:
        return {}
    labels, probabilities = record.arrays
    if not np.isfinite(probabilities).all():
        return {}
    found = calibration(probabilities, labels)
    fields = {"confidence": found.confidence, "calibration_error": found.error}
    if record.best_validation is not None and trainer.ckpt_path is not None:  # else another network is tested
        val_labels, val_logits = (each.numpy() for each in record.best_validation)
        if (temperature := best_temperature(val_logits, val_labels)) is not None:
            logits = np.log(np.maximum(probabilities, SMALLEST))
            cooler = calibration(at_temperature(logits, temperature), labels)
            fields |= {"temperature": temperature, "calibration_error_at_temperature": cooler.error}
    return {name: plain(torch.tensor(value)) for name, value in fields.items()}
