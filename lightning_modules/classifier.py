"""The common base of image classifiers: loss, metrics, optimizer and learning-rate schedule."""

import math
from abc import ABC
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from datamodules.batch import Batch
from lightning_modules.errors import ModelError
from lightning_modules.metrics import OwnMetrics, built
from lightning_modules.schedules import Length, class_and_arguments, lacks_length, left_out
from lightning_modules.weight_decay import parameter_groups
from overfitting_lab.runs.checkpoints import foreign_names, imported, load_saved
from overfitting_lab.runs.epochs import METRICS, names_of
from overfitting_lab.runs.imports import why_not_imported

T = TypeVar("T")


class ImageClassifier(LightningModule, ABC):
    """A network that gives one logit per class, trained by softmax cross-entropy.

    A subclass builds ``network`` and passes it on, with the arguments that it takes of those that follow.

    ``label_smoothing``, in [0, 1), is the share of a label that is divided equally among all classes (Szegedy et al.
    2016, sec. 7). Only the loss that training minimizes is smoothed.

    A step takes a :class:`Batch`. The loss is the sum over this process's images divided by ``total`` and multiplied by
    the number of processes, so that DDP's mean of the gradients over processes is the mean over the whole step's
    images, also if they do not divide evenly.

    Logged once an epoch, over every image exactly once for any number of processes: ``train_loss``, ``train_acc``,
    ``val_loss``, ``val_acc``, ``test_loss``, ``test_acc``, and ``probe_loss``, ``probe_acc`` in an epoch that evaluates
    the probe. Losses are means in nats, accuracies fractions of 1. The training metrics are measured while the weights
    move, with dropout, augmentation and mixing on. The probe metrics are measured on training images, as in validation.
    All losses, also ``train_loss``, are plain cross-entropies of the images' own labels, so that they can be compared
    with each other and with chance level. With label smoothing or mixing, training minimizes another loss.

    The ``state_dict`` of ``network``, the layers alone, is the run's ``weights.pth``. ``val_confusion`` and
    ``test_confusion`` count images [num_classes, num_classes], rows are the true classes. ``probed`` is True if the
    last validation evaluated the probe.

    ``metrics`` are further metrics of torchmetrics by their names, each a function of the number of classes. They get
    logits and labels, and are logged for every split beside ``loss`` and ``acc``: ``f1`` as ``train_f1``, ``val_f1``,
    ``probe_f1`` and ``test_f1``. More of a metric is better, unless its name ends in ``loss`` or ``error``.

    With ``decay_biases=False``, the optimizer's weight decay leaves one-dimensional parameters alone.

    A schedule of torch may lack its length, and a ``OneCycleLR`` its highest rate. ``run_length`` then decides them:
    set it before :meth:`configure_optimizers`. ``computed_schedule`` holds the values. ``lr_scheduler_interval`` says
    how often the schedule steps. By default that is every optimizer step if its length is computed, else every epoch.

    Raises:
        ValueError: if ``label_smoothing`` is out of its range.
        ModelError: if a metric's name does not fit, or if it gives no single number of logits and labels.
    """

    run_length: Length | None = None

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        image_size: int,
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] | None = None,
        decay_biases: bool = True,
        label_smoothing: float = 0.0,
        metrics: OwnMetrics | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        # Callables do not survive a checkpoint that is loaded with weights_only=True, and the weights' origin is no
        # longer needed. The run's config.yaml has them all.
        ignored = ["network", "initialization", "init_from", "optimizer", "lr_scheduler", "metrics"]
        self.save_hyperparameters(ignore=ignored, logger=False)  # the loggers get all settings, from a callback
        if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
            raise ModelError("the network has lazy layers: show it one image in __init__, which gives them their sizes")
        self.network = network.to(memory_format=torch.channels_last)
        self.num_classes = num_classes
        self.image_size = image_size
        self.label_smoothing = label_smoothing
        self.example_input_array = torch.zeros(1, 3, image_size, image_size)
        self.decay_biases = decay_biases
        self._optimizer = _shared(optimizer)
        self._lr_scheduler = lr_scheduler and _shared(lr_scheduler)
        self._schedule, self._schedule_arguments = class_and_arguments(lr_scheduler)
        by_step = lacks_length(self._schedule, self._schedule_arguments)
        self.lr_scheduler_interval = lr_scheduler_interval or ("step" if by_step else "epoch")
        if "lr_scheduler_interval" in self.hparams:  # as in config.yaml, so that a resumed run writes the same
            self.hparams["lr_scheduler_interval"] = self.lr_scheduler_interval
        self.computed_schedule: dict[str, Any] = {}
        self._has_own_losses = type(self).training_losses is not ImageClassifier.training_losses

        accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        own = {name: built(name, make, num_classes) for name, make in (metrics or {}).items()}
        self.own_metrics = tuple(own)
        # Groups would share the states of two metrics that are equal by chance after the first batch.
        every = {"loss": MeanMetric(nan_strategy="disable"), "acc": accuracy, **own}
        collection = MetricCollection(every, compute_groups=False)  # type: ignore[arg-type]
        self.train_metrics = collection.clone(prefix="train_")
        self.val_metrics = collection.clone(prefix="val_")
        self.probe_metrics = collection.clone(prefix="probe_")
        self.probed = False
        self.test_metrics = collection.clone(prefix="test_")
        self.val_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    @property
    def monitored(self) -> tuple[str, ...]:
        """Names of the metrics that something may monitor in training."""
        return (*METRICS, *(name for name in names_of(self.own_metrics) if not name.startswith("probe_")))

    def pretrained(self) -> dict[str, Tensor]:
        """Return weights to begin training with instead of random ones, by their names in ``network``: here, none.

        Raises:
            ModelError: if the weights cannot be used.
        """
        return {}

    def check_network(self) -> None:
        """Try the network on one image, before any work.

        Raises:
            ModelError: if it does not return one logit per class, answers at random in evaluation mode, or has weights
                or computes elsewhere than in ``network``.
        """
        if apart := [name for name, _ in self.named_parameters() if not name.startswith("network.")]:
            raise ModelError(
                f"{', '.join(apart)}: weights outside of the network that {type(self).__name__} gives to "
                "ImageClassifier, which weights.pth and exports would lack: make them layers of that network"
            )
        with isolate_rng(), torch.no_grad():
            image = torch.randn(1, 3, self.image_size, self.image_size)
            modes = {module: module.training for module in self.modules()}  # a layer of its own may stay in evaluation
            try:
                outputs = self.eval()(image), self(image)
                bare = self.network(image.to(next(self.parameters()).dtype))
            except RuntimeError as error:
                name, size = type(self).__name__, self.image_size
                raise ModelError(
                    f"{name} fails with an image [1, 3, {size}, {size}]: {error}; correct its forward or, if it needs "
                    "another size, give --data.image_size"
                ) from error
            for module, training in modes.items():
                module.training = training
        logits = outputs[0]
        if not isinstance(logits, Tensor):
            raise ModelError(f"the network returns a {type(logits).__name__}, not logits [N, {self.num_classes}] alone")
        if logits.shape != (1, self.num_classes):
            raise ModelError(
                f"the network returns {list(logits.shape)} for an image, not one logit for each of the "
                f"{self.num_classes} classes: its last layer needs num_classes outputs"
            )
        if not torch.allclose(*outputs, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ModelError(
                "the network gives two answers for one image in evaluation mode: write F.dropout(x, p, self.training), "
                "or use nn.Dropout, which a validation switches off"
            )
        if not torch.allclose(logits, bare, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ModelError(
                f"{type(self).__name__}.forward computes more than the network that the class gives to "
                "ImageClassifier, and weights.pth and exports would lack it: make it a layer of that network"
            )

    def compile_network(self, mode: str) -> None:
        """Compile the network in training, in a mode of torch.compile. Evaluation stays as it is.

        Dropout draws the same masks as in a network that is not compiled. Each size of a batch is compiled for itself,
        so that a resumed run computes its steps with the same code.

        torch 2.11 silently ignores ``network.compile`` in two cases. It skips code of torch's own, such as an
        ``nn.Sequential``. And if the network is first called while Lightning's table of layers counts its operations,
        which is in evaluation, it is never compiled afterwards.
        """
        from torch._inductor import config  # not at the top: slow to import

        config.fallback_random = True
        plain: Callable[..., Any] = self.network._call_impl  # with the network's hooks

        def whole(*inputs: Any, **options: Any) -> Any:
            return plain(*inputs, **options)

        compiled = torch.compile(whole, mode=mode, dynamic=False)

        def call(*inputs: Any, **options: Any) -> Any:
            return (compiled if self.network.training else plain)(*inputs, **options)

        self.network._compiled_call_impl = call

    def on_fit_start(self) -> None:
        """Load pretrained weights, unless a checkpoint was loaded.

        Raises:
            ModelError: if the weights cannot be used.
        """
        if self.trainer.ckpt_path is None:
            self.network.load_state_dict(self.pretrained(), strict=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes] of normalized images [N, 3, image_size, image_size]."""
        return cast(Tensor, self.network(images.to(next(self.parameters()).dtype)))

    def _losses(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Return each image's cross-entropy in nats [N] and logits [N, num_classes], and update the metrics."""
        logits = self(batch.images)
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        if len(batch.labels):  # with fewer images than processes, some get none
            metrics.update(value=losses.detach(), preds=logits.detach().float(), target=batch.labels)
        return losses, logits

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the ``loss`` to minimize, the ``cross_entropy`` without smoothing and mixing, and the ``logits``.

        The class says how losses add up over processes.
        """
        losses, logits = self._losses(batch, self.train_metrics)
        if self.train_metrics["acc"].update_count <= 1:
            # Logging registers a metric for the whole epoch: doing it once saves a millisecond a step.
            self.log_dict(self.train_metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch.total)
        weight = self.trainer.world_size / batch.total
        loss = cross_entropy = losses.sum() * weight
        if self.label_smoothing or batch.shares is not None or self._has_own_losses:
            loss = self.training_losses(logits, batch).sum() * weight
        return {"loss": loss, "cross_entropy": cross_entropy.detach(), "logits": logits}

    def training_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss to minimize of each image of a training batch, in nats [N], for logits [N, num_classes].

        A subclass may replace it. Without a replacement, smoothing or mixing, the cross-entropy is minimized.

        It is the cross-entropy of the smoothed label. For a mixed image, it is the mean of the image's and the
        partner's cross-entropy, weighted by their shares.
        """
        smoothed = partial(F.cross_entropy, logits.float(), reduction="none", label_smoothing=self.label_smoothing)
        losses = smoothed(batch.labels)
        if batch.partners is not None and batch.shares is not None:
            losses = batch.shares * losses + (1 - batch.shares) * smoothed(batch.partners.labels)
        return losses

    def on_validation_epoch_start(self) -> None:
        """Reset the confusion matrix."""
        self.val_confusion.reset()
        self.probed = False

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Update the metrics with a batch of validation images, or of the probe, and return their logits."""
        self.probed = dataloader_idx == 1
        _, logits = self._losses(batch, self.probe_metrics if self.probed else self.val_metrics)
        if len(batch.labels) and not self.probed:
            self.val_confusion.update(logits, batch.labels)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's validation metrics, and the probe's if it was evaluated."""
        self.log_dict(self.val_metrics, prog_bar=True)
        if self.probed:
            self.log_dict(self.probe_metrics)

    def on_test_epoch_start(self) -> None:
        """Reset the confusion matrix."""
        self.test_confusion.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Update the metrics with a batch of test images, and return their logits [N, num_classes]."""
        _, logits = self._losses(batch, self.test_metrics)
        if len(batch.labels):
            self.test_confusion.update(logits, batch.labels)
        return logits

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        """Return probabilities, float32 [N, num_classes], of normalized images [N, 3, image_size, image_size]."""
        return self.probabilities(self(batch))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities, float32 [N, num_classes], of the network's outputs."""
        return logits.float().softmax(dim=1)

    @classmethod
    def from_checkpoint(cls, path: Path, trusted: str | None = None) -> "ImageClassifier":
        """Return the network of a checkpoint that a run wrote, on the CPU and in evaluation mode.

        Its class is one of this project, one that is imported already, or ``trusted``, the import path that the run's
        configuration has. Nothing is imported because the checkpoint names it.

        Raises:
            ModelError: if the checkpoint names no image classifier, or code that is not imported.
        """
        settings = load_saved(path).get("hyper_parameters", {})
        class_path = str(settings.get("_class_path"))
        if class_path == trusted and (reason := why_not_imported(class_path)):
            raise ModelError(f"{path} is of the network {class_path}, which cannot be imported: {reason}")
        remedy = (
            "nothing is imported because a file names it: give the folder of a run whose config.yaml names this "
            "network, or an exported model.onnx"
        )
        if foreign := next(foreign_names(settings), None):
            raise ModelError(f"{path} names {foreign}, which is not code of this project; {remedy}")
        kind = imported(class_path)
        if not (isinstance(kind, type) and issubclass(kind, ImageClassifier)):
            own = f"; {remedy}" if kind is None and "." in class_path else ""
            raise ModelError(f"{path} names no image classifier, but {class_path!r}{own}")
        return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network.

        Raises:
            ModelError: if its weights do not fit.
        """
        theirs = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        mine = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        for name in sorted(theirs.keys() | mine.keys()):
            if theirs.get(name) != mine.get(name):
                raise ModelError(
                    f"the checkpoint is of another network than {type(self).__name__} as configured here: "
                    f"{name} is {theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here; "
                    "use the checkpoint with the config.yaml of the run it is from, and with data of the same classes"
                )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip a step's gradients by ``norm``, the default, or by ``value``. 0 or ``None`` clips nothing.

        It works in every precision. Lightning 2.6 refuses to clip for a fused optimizer under mixed precision
        (Lightning #21435).
        """
        if gradient_clip_val:
            if (scaler := scaler_of(self.trainer, optimizer)) is not None:
                scaler.unscale_(optimizer)
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip(self.trainer.precision_plugin.main_params(optimizer), gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and, if one is set, the learning-rate schedule.

        Raises:
            ModelError: if a plateau schedule monitors a metric that no epoch logs, if a schedule needs the length of a
                run without an end, or if the optimizer has no weight decay from which to leave out the biases.
        """
        optimizer = self._optimizer(self.parameters())
        if not self.decay_biases:
            if "weight_decay" not in optimizer.defaults:
                raise ModelError(
                    "decay_biases=False needs an optimizer with weight decay, which "
                    f"{type(optimizer).__name__} does not have; leave --model.decay_biases out, or give another "
                    "optimizer, such as --model.optimizer torch.optim.AdamW"
                )
            optimizer = self._optimizer(parameter_groups(self.parameters()))
        if self._lr_scheduler is None:
            return optimizer
        interval, length = self.lr_scheduler_interval, self.run_length or self._length_of_trainer()
        schedule, given = self._schedule, self._schedule_arguments
        self.computed_schedule = left_out(schedule, given, length, interval, optimizer)
        scheduler = self._lr_scheduler(optimizer, **self.computed_schedule)
        if not isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}
        ours = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]  # a user's own class may log more
        if ours and scheduler.monitor not in self.monitored:
            raise ModelError(
                f"the learning-rate schedule monitors {scheduler.monitor!r}, which no epoch logs; "
                f"set its monitor to one of {', '.join(self.monitored)}"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}

    def _length_of_trainer(self) -> Length:
        """Return the length of the attached Trainer's run. Without a Trainer, any length builds the schedule."""
        if self._trainer is None:
            return Length(1, 1, 1000, 1000)
        self.trainer.fit_loop.setup_data()  # counts the batches, which Lightning does later if max_steps ends the run
        batches, total = self.trainer.num_training_batches, self.trainer.estimated_stepping_batches
        if math.inf in (batches, total):
            return Length(0, 0, 0, 0)
        accumulated = self.trainer.accumulate_grad_batches
        steps = -(-int(batches) // accumulated)
        epochs, rest = divmod(int(total), steps)
        return Length(int(batches), steps, int(total), epochs + (rest > 0), accumulated, rest * accumulated)


def scaler_of(trainer: Trainer, optimizer: Optimizer) -> torch.amp.GradScaler | None:
    """Return the scaler of float16's gradients if they are still scaled in ``on_before_optimizer_step``, else ``None``.

    A fused optimizer unscales them in its step. Lightning unscales them for other optimizers before that hook.
    """
    scaler: torch.amp.GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if getattr(optimizer, "_step_supports_amp_scaling", False) else None


def _shared(factory: Callable[..., T]) -> Callable[..., T]:
    """Wrap a callable in a function, which copies of a module share.

    A copy of jsonargparse's callable would copy the command line with the Trainer, which fails if the Trainer has
    started other processes.
    """

    def call(*args: Any, **settings: Any) -> T:
        return factory(*args, **settings)

    return call
