"""Build a model, its data and a Trainer that keeps the run's folder, from a configuration."""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentError, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt, extend_base_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_only

from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from overfitting_lab import began
from overfitting_lab.callbacks.doctor import Advice
from overfitting_lab.callbacks.ending import ObservedTrainer
from overfitting_lab.callbacks.further_loggers import resume_loggers
from overfitting_lab.callbacks.limits import fit_schedule
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.recovery import Keep, Recovery
from overfitting_lab.cli import refusals, trainer_callbacks
from overfitting_lab.cli.assembly import Assembly, check_writable
from overfitting_lab.cli.failures import REPORTED, is_defect
from overfitting_lab.cli.loggers import prepared, with_absolute_paths
from overfitting_lab.cli.messages import silence_noise
from overfitting_lab.cli.monitors import check_monitors
from overfitting_lab.cli.parser import ExperimentParser, check_experiment_name
from overfitting_lab.cli.precision import default_precision
from overfitting_lab.cli.replay import UNWRITABLE, replayable
from overfitting_lab.cli.resumption import AUTO, Resumption, RunFinder
from overfitting_lab.cli.trainer_flags import TRAINER_FLAGS, problems, typed_flags
from overfitting_lab.distributed.agreement import decided_by_first
from overfitting_lab.distributed.launchers import choose_environment, device_count
from overfitting_lab.distributed.together import end_with_parent, leave_together, use_together_strategy
from overfitting_lab.runs import Run, UsageError
from overfitting_lab.runs.checkpoints import checked_checkpoint
from overfitting_lab.runs.files import experiments_folder, user_path
from overfitting_lab.runs.notes import in_words
from overfitting_lab.runs.recipe import change_lines, decides, flat, recipe, setting_name
from overfitting_lab.runs.text import not_text

USAGE_ERRORS = (ArgumentError, ModuleNotFoundError, ValueError)  # their messages are shown as they are
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
TRAINING_FLAGS = (  # flags that do nothing if nothing is trained
    "experiment", "resume", "ckpt_path", "checkpoint_minutes", "checkpoint_steps", "keep", "monitor", "compile",
    "doctor", "check",
)  # fmt: skip


class ExperimentCLI(LightningCLI):
    """Parse ``--config`` and flags, and build ``model``, ``datamodule`` and ``trainer``. Run nothing.

    Without ``args`` it parses the process's own command line. A run's folder is kept if ``keep`` is true, but not with
    ``--trainer.fast_dev_run`` or ``--trainer.logger false``. The flags of the Trainer are checked. If ``trains``
    is false, only the accelerator and the flags on the command line are checked, because the run has already ended.
    """

    model: ImageClassifier
    datamodule: CIFAR10DataModule

    def __init__(
        self,
        args: list[str] | None = None,
        *,
        description: str | None = None,
        keep: bool = True,
        trains: bool = True,
    ) -> None:
        self._begun = began.pop() if began else time.perf_counter()
        silence_noise()
        # Lightning 2.6 calls torch's pytree in a way that torch 2.14 deprecates.
        warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")
        warnings.filterwarnings("ignore", message=f"[\\s\\S]*{UNWRITABLE}")  # replayable() refuses such a value
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names of classes in any script
        use_together_strategy()
        self._keep = keep
        self._checked_flags = [*TRAINER_FLAGS] if trains else ["accelerator", *typed_flags(args or [])]
        self._trains = trains
        self._resumption: Resumption | None = None
        self._finder: RunFinder | None = None
        self.logger: RunLogger | None = None
        super().__init__(
            ImageClassifier,
            CIFAR10DataModule,
            trainer_class=ObservedTrainer,
            save_config_callback=None,
            trainer_defaults={"devices": 1},
            seed_everything_default=0,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            run=False,
            parser_kwargs={"description": description, "usage": "%(prog)s --config NAME [--SETTING VALUE ...]"},
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser that finds configurations by name and has readable errors."""
        parser = ExperimentParser(allow_abbrev=False, **kwargs)
        parser.with_logger = self._keep
        parser.add_argument("-c", "--config", action="config", help="a name in configs/ or a path; may be repeated")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the flags of the run, and give the model its size from the data."""
        name = extend_base_type("ExperimentName", str, check_experiment_name, register_key=(check_experiment_name, str))
        add = parser.add_argument
        add("--experiment", type=name, default="unnamed", help="name of the run's folder in lightning_logs/")
        resume = "folder of the run to resume; auto: the newest run of these settings and data, or a new one"
        add("--resume", type=str | None, help=resume)
        add("--ckpt_path", type=str | None, help="checkpoint to start training from")
        add("--checkpoint_minutes", type=PositiveFloat, default=5.0, help="minutes between checkpoints within an epoch")
        add("--checkpoint_steps", type=PositiveInt | None, help="steps between checkpoints within an epoch")
        keep = "weights: a finished run keeps no last.ckpt, which can train longer and is the largest file"
        add("--keep", type=Keep, default="all", help=keep)
        monitor = "validation metric that chooses the best checkpoint: val_acc, val_loss, or one of model.metrics"
        add("--monitor", type=str, default="val_acc", help=monitor)
        add("--compile", type=CompileMode | None, help="mode of torch.compile; off by default")
        advice = "advise: report what is wrong with the run; stop: also end a run that cannot succeed; off: no doctor"
        add("--doctor", type=Advice, default="advise", help=advice)
        add("--check", action="store_true", help="examine the experiment for a few seconds without training")
        parser.link_arguments("data.image_size", "model.init_args.image_size")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        lightning = parser.groups["trainer"]  # type: ignore[index]
        lightning.title = "Lightning's Trainer"
        parser._action_groups = sorted(parser._action_groups, key=lambda group: group is lightning)  # last in --help

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line. Flags of a resumed run are put on top of its own configuration.

        Raises:
            RunError: if ``--resume`` names no run.
            UsageError: if a flag is only for training, and nothing is trained.
        """
        flags = [] if self._trains else [flag for flag in args if flag.startswith("--")]
        if idle := [name for name in map(setting_name, flags) if name in TRAINING_FLAGS]:
            raise UsageError(
                f"--{idle[0]}: this applies only to training, and this script does not train: leave it out"
            )
        self._arguments = args
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--resume", action="append")
        found, others = finder.parse_known_args(args)
        resumed = found.resume or [None]
        if len(resumed) > 1:
            raise UsageError(f"--resume {' --resume '.join(resumed)}: name one run, or auto")
        if resumed[0] in (None, AUTO):
            self.config = parser.parse_args(args)
            if not self._trains and self.config.data.source == "synthetic" and "data.root" in map(setting_name, flags):
                raise UsageError(
                    "--data.root: the run was trained on synthetic images, which come from no folder; to use your own "
                    "images, add --data.source folder"
                )
            if self.config.resume not in (None, AUTO):
                parser.error(f"resume: a configuration cannot name the run; give --resume {self.config.resume}")
            if not self._keep:
                self.config.trainer.logger, self.config.resume = False, None
            return
        self._resumption = Resumption.with_flags(parser, user_path(resumed[0]), others)
        self.config = self._resumption.config

    def before_instantiate_classes(self) -> None:
        """Refuse wrong flags, find out about other processes, and choose the precision. Exit if a run is complete."""
        complete = self._resumption is not None and self._resumption.is_complete
        if not complete:
            self._refuse_flags()
        trainer = self.config.trainer
        if reason := not_text(Path(self.config.data.root).absolute()):
            self.parser.error(f"--data.root {self.config.data.root}: {reason}")
        self._refuse_callbacks()
        if self.config.check:
            self._keep = False
            trainer.devices, trainer.num_nodes, trainer.strategy = 1, 1, "auto"
        try:
            self._environment = choose_environment(trainer.accelerator, trainer.devices, trainer.num_nodes)
        except MisconfigurationException as error:
            self.parser.error(str(error), error)
        end_with_parent()
        if self._resumption is not None:
            if complete:
                self._leave(self._resumption.completeness)
            self._print_changes(self._resumption)
        kept = self._resumption is not None and "trainer.precision" not in self._resumption.changes
        self._precision_reason = "as before" if kept else "as asked for"
        if trainer.max_epochs is None and trainer.max_steps == -1 and trainer.max_time is None:
            trainer.max_epochs = 1000  # Lightning's default, which it would set later
        if trainer.precision is None:
            trainer.precision, self._precision_reason = default_precision(trainer.accelerator)

    def _refuse_flags(self) -> None:
        given = self.config.clone()
        given.resume = self._resumption.run.folder if self._resumption else self.config.resume
        if found := problems(given, self._checked_flags):
            if self._resumption is not None:
                found.append(f"a flag on the command line replaces the one in {self._resumption.run.files.config}")
            self.parser.error("\n".join(found))
        if self._resumption is not None and (fewer := self._resumption.fewer_epochs()):
            self.parser.error(fewer)

    def _refuse_callbacks(self) -> None:
        """Refuse callbacks that do not work, or leave them out if nothing is trained; refuse what no file can hold."""
        trainer = self.config.trainer
        if not self._trains:
            trainer.callbacks = trainer.callbacks and trainer_callbacks.without_refused(trainer)
            return
        try:
            trainer_callbacks.check_configured(trainer)
            replayable(self.parser, self.config)
        except ValueError as error:
            self.parser.error(str(error), error)

    def _resume_newest(self) -> None:
        """Resume the newest run with the command's settings and data. If it is finished, say so and exit."""
        if self.config.ckpt_path is not None:
            self.parser.error("--resume auto chooses the checkpoint itself: leave --ckpt_path out")
        trainer = self.config.trainer
        self.datamodule = CIFAR10DataModule(**self.config.data)
        processes = device_count(trainer.accelerator, trainer.devices) * trainer.num_nodes
        folder = decided_by_first(self._environment, processes, trainer.num_nodes, self._newest_folder)
        if not folder:
            return
        run = Run(Path(folder))
        if run.finished:
            self._leave(f"{folder} is already complete: it has the same data and settings")
        if self._precision_reason != "as asked for":
            trainer.precision, self._precision_reason = run.settings["trainer.precision"], "as before"
        before = run.settings  # an older run has fewer
        after = {
            name: before[name] if decides(name) else value for name, value in self.settings.items() if name in before
        }
        self._resumption = Resumption(run, self.config, before, after)
        self._print_changes(self._resumption)

    def _newest_folder(self) -> str:
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        data, experiment = self.datamodule.description(), self._root / self.config.experiment
        check_writable(experiment)
        self._finder = RunFinder(experiment, recipe(self._with_schedule(), data), data["fingerprint"])
        run = self._finder.newest()
        return str(run.folder) if run else ""

    def _with_schedule(self) -> dict[str, Any]:
        """Return all settings by flag, with what a run computes of its learning-rate schedule and its interval."""
        with isolate_rng():  # the network that is drawn here must not change the one that is trained
            planned = ExperimentCLI(self._arguments, keep=False)
            fit_schedule(planned.trainer, planned.model, self.datamodule)
        return planned.settings

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by flag, as a run's ``config.yaml`` has them."""
        return flat(yaml.safe_load(self.complete_config))

    def _leave(self, message: str) -> NoReturn:
        rank_zero_only(print)(message)
        self._let_others_search()
        sys.exit(0)

    def _let_others_search(self) -> None:
        if self._finder is not None:
            self._finder.lock.release()

    def _print_changes(self, resumption: Resumption) -> None:
        for line in change_lines(resumption.changes):
            rank_zero_only(print)(line)
        if resumption.run.status != "unknown":
            for name in resumption.run.changed_code:
                rank_zero_only(print)(f"changed    the file of {name}: this run began with other code")

    def _set_seed(self) -> None:
        """Seed everything; report a seed that torch refuses, or that Lightning would choose, as a usage error."""
        if isinstance(self.config.seed_everything, bool):
            self.parser.error("--seed_everything: give a whole number, such as 1; it makes the run repeatable")
        try:
            super()._set_seed()
        except ValueError as error:
            self.parser.error(f"--seed_everything: {error}", error)

    def instantiate_classes(self) -> None:
        """Build everything; report what the configuration gets wrong as a usage error, before any work."""
        try:
            self._given_logger = self.config.trainer.logger
            if self.config.resume == AUTO and self._keep:
                self._resume_newest()
            self._prepare_loggers()
            super().instantiate_classes()
            self.datamodule.share_of_batch(self.trainer.world_size)
            if self._trains:
                self._refuse_lost()
                trainer_callbacks.check_device(self.trainer)
                check_monitors(self.trainer, self.model, self._given_callbacks, self.config.monitor)
            elif type(self.model).configure_optimizers is ImageClassifier.configure_optimizers:
                self.model.configure_optimizers()
            if self.logger is not None and self.resume_from is None:
                self.model.pretrained()
        except (*REPORTED, OSError):
            raise
        except Exception as error:
            if not isinstance(error, USAGE_ERRORS) and is_defect(error):
                raise
            message = str(error) if isinstance(error, USAGE_ERRORS) else in_words(error)
            self.parser.error(message, error)
        if self._trains:
            self.model.check_network()
            if self.config.compile is not None:
                self.model.compile_network(self.config.compile)

    def _refuse_lost(self) -> None:
        """Refuse settings that others make useless."""
        network, mode = self.config.model.init_args, self.config.compile or "default"
        typed = [*map(setting_name, sys.argv[1:] if self._arguments is None else self._arguments)]
        for reason in (
            refusals.lost_method(self.model),
            refusals.lost_optimizer(self.model, network),
            refusals.lost_schedule(self.model, network),
            refusals.lost_interval(network, typed),
            refusals.lost_rate(network, typed),
            refusals.lost_gradients(mode, self.trainer.accumulate_grad_batches, self._given_callbacks),
        ):
            if reason:
                self.parser.error(reason)

    def _prepare_loggers(self) -> None:
        """Check the configured loggers, and choose where each writes. Without a run's folder, build none."""
        trainer = self.config.trainer
        callbacks = trainer_callbacks.configured(trainer)
        uploads = any(each.class_path.endswith("ModelCheckpoint") for each in callbacks)
        resumed = self._resumption.run if self._resumption else None
        loggers = prepared(trainer.logger, self._root, resumed, uploads)
        keep = self._keep and not trainer.fast_dev_run and trainer.logger is not False
        trainer.logger = loggers if keep else False

    @property
    def _root(self) -> Path:
        """Folder of all experiments."""
        if self._resumption is not None:
            return Path(os.path.relpath(self._resumption.place.parent.parent))
        return experiments_folder(self.config.trainer.default_root_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return a Trainer with the project's callbacks beside the configured ones."""
        config, network = self.config_init.trainer, self.config.model.init_args
        if "lr_scheduler_interval" in network:
            network.lr_scheduler_interval = self.model.lr_scheduler_interval
        self._given_callbacks = trainer_callbacks.configured(config)
        given = trainer_callbacks.complete(self._given_callbacks, config, keep=self._keep)
        if config.logger is not False:
            self.logger = self._run_logger(config.logger or [])
        run = Assembly(
            config=self.config,
            trainer=config,
            given=given,
            logger=self.logger,
            may_continue=self._resumption is None or self._resumption.changes_callbacks,
            precision_reason=self._precision_reason,
            begun=self._begun,
            complete=self._complete,
            as_text=lambda: self.complete_config,
        )
        return super().instantiate_trainer(**run.arguments(self._environment), **kwargs)

    def _run_logger(self, others: list[Logger]) -> RunLogger:
        """Return the logger of a run's folder that can be written to, and prepare the ``others`` to resume."""
        if self._resumption is None:
            check_writable(self._root / self.config.experiment)
            return RunLogger(self._root, self.config.experiment)
        folder = self._resumption.place
        check_writable(folder)
        resume_loggers(others)
        return RunLogger(self._root, folder.parent.name, folder.name)

    @property
    def complete_config(self) -> str:
        """The complete configuration as YAML."""
        return replayable(self.parser, self._complete())

    def _complete(self) -> Namespace:
        """Return the complete configuration, with the source that was used, absolute paths and computed values."""
        config: Namespace = self.config.clone()
        config.trainer.logger = with_absolute_paths(self._given_logger)
        config.data.source = self.datamodule.source.KEY
        config.data.stand_in = False
        config.data.root = str(Path(config.data.root).resolve())
        if config.model.init_args.get("init_from") is not None:
            config.model.init_args.init_from = str(Path(config.model.init_args.init_from).resolve())
        computed = self.model.computed_schedule if hasattr(self, "model") else {}
        for name, value in computed.items():
            config.model.init_args.lr_scheduler.init_args[name] = value
        config.ckpt_path = config.resume = None
        return config

    def leave_together(self) -> None:
        """Wait for all processes and end their group, so that no process exits while another still waits for it.

        Then release the run's folder.
        """
        leave_together(self.trainer.strategy)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Recovery):
                callback.release_folder()
        self._let_others_search()

    @property
    def resume_from(self) -> str | None:
        """Path of the checkpoint whose state training starts from; ``None`` for a new run."""
        if self.config.ckpt_path is not None:
            return str(checked_checkpoint(Path(self.config.ckpt_path), with_state=True))
        return str(self._resumption.run.newest_checkpoint() or "") or None if self._resumption else None

    @property
    def best_checkpoint(self) -> str | None:
        """Path of the best checkpoint of the run that was fitted; ``None`` if none was kept."""
        return str(self.logger.files.best) if self.logger and self.logger.files.best.is_file() else None
