"""The ablations of ``scripts/ablate.py``: what their trials vary and share, checked before anything is trained."""

import io
from argparse import Namespace
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from overfitting_lab.cli.configurations import find_config
from overfitting_lab.cli.errors import USAGE
from overfitting_lab.cli.factors import check_cells, last_subset, planned_trial, read_factors, refuse_fixed
from overfitting_lab.cli.finished import finished_run, planned_experiment
from overfitting_lab.runs import Run, RunError, UsageError
from overfitting_lab.runs.recipe import read_settings, recipe, setting_name
from overfitting_lab.sweeps.ablation import Ablation
from overfitting_lab.sweeps.designs import Design, design_of
from overfitting_lab.sweeps.factors import REMEDIES, SEED, SIZE, SUBSET, Command, Factor

SIZES = (500, 1000, 2000, 5000, 10000, 20000, 45000)
SIZE_OF_ALL = 1000


@dataclass(frozen=True)
class AblationPlan:
    """A study: what its trials vary, and the command line that they share."""

    name: str
    design: Design
    command: Command
    apart: Sequence[Factor]  # their settings may differ from one start of the study to the next
    size: int | None  # training images of every trial; None if the trials vary it

    @classmethod
    def of_factors(cls, arguments: Namespace, flags: Sequence[str]) -> "AblationPlan":
        """Return the plan of ``--factor``, or of dropout, weight decay and augmentation.

        Args:
            arguments: of ``scripts/ablate.py``.
            flags: of ``fit.py``, for all trials.

        Raises:
            UsageError: if the factors, levels and flags do not fit together.
            SystemExit: if a level does not fit its setting.
        """
        if arguments.sizes is not None and (arguments.one_at_a_time or arguments.full):
            raise UsageError("--sizes is a design of its own: leave --one_at_a_time and --full out")
        refuse_fixed([SIZE, SUBSET, SEED], flags)
        by_size = SIZE.key in map(setting_name, arguments.factor or ())
        if by_size and arguments.train_size:
            raise UsageError(f"--factor {SIZE.key} varies the number of images: leave --train_size out")
        size = None if by_size else arguments.train_size or _configured_size(arguments.config) or SIZE_OF_ALL
        shared = [*_shared(arguments, flags), *([f"--{SIZE.key}={size}"] if size else [])]
        if arguments.factor:
            factors = read_factors(
                arguments.factor, arguments.config, shared, alone=arguments.one_at_a_time, subsets=arguments.subsets
            )
            apart = [*factors, SEED]
            names = sorted(f"{factor.name} {factor.digest}".rstrip() for factor in factors)
            name = " x ".join(names) + (f", {size} images" if size else "")
        else:
            refuse_fixed(REMEDIES, flags)
            factors, apart, name = [*REMEDIES], [*REMEDIES, SIZE, SEED], f"factorial-{size}"
        design = design_of(factors, alone=arguments.one_at_a_time, full=arguments.full)
        command = Command(arguments.config, shared, factors)
        if any(factor.sets for factor in factors) and not arguments.one_at_a_time:
            check_cells(design, command, arguments.subsets)
        if not arguments.factor and arguments.sizes is None:
            planned_trial(command, design.cells[-1], "the default factors, dropout, weight decay and augmentation")
        return cls(name, design, command, apart, size)

    @classmethod
    def of_sizes(cls, arguments: Namespace, flags: Sequence[str]) -> "AblationPlan":
        """Return the plan of ``--sizes``: more and more images, without dropout, weight decay and augmentation."""
        sizes = replace(SIZE, levels=tuple(sorted(set(arguments.sizes)) or SIZES))
        off = [f"--{factor.key}={factor.levels[0]}" for factor in REMEDIES]
        points = Design("curve", (sizes,), tuple({SIZE.name: level} for level in sizes.levels))
        command = Command(arguments.config, [*_shared(arguments, flags), *off], [sizes])
        return cls("sizes", points, command, [*REMEDIES, SIZE, SEED], None)

    def begin(self, subsets: int, seeds: int, storage: str | None) -> Ablation:
        """Return the ablation. Each cell is one trial for every subset of the images and every seed.

        Raises:
            UsageError: if the images do not suffice, or the study began with other fixed settings.
            RunError: if the storage cannot be used.
        """
        for cell in self.design.cells[0], self.design.cells[-1]:  # the smallest and the largest of sizes
            sizes = [f"--sizes {level}" for name, level in cell.items() if name == SIZE.name]
            subset = [f"--subsets {subsets}"] if subsets > 1 else []
            if sizes or subset:
                planned_trial(self.command, {**cell, **last_subset(subsets)}, " ".join([*sizes, *subset]))
        folder, settings, cli = planned_experiment(self.command.line({}), divided=False)
        fixed = {**recipe(settings), "the images": cli.datamodule.source.load().identity}
        for factor in self.apart:
            fixed.pop(factor.key, None)
        return Ablation(self.name, self.design.cells, subsets, seeds, folder, fixed, self._train, storage)

    def count(self, subsets: int, seeds: int) -> str:
        """Return how many trials there are, and of what."""
        counts = {"cell": len(self.design.cells), **({"subset": subsets} if subsets > 1 else {}), "seed": seeds}
        product = " x ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in counts.items())
        trials = len(self.design.cells) * subsets * seeds
        return f"{self.design.title}: {product} = {trials} trial{'s' * (trials > 1)}"

    def _train(self, setting: Mapping[str, Any], output: IO[str]) -> Run:
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                return finished_run(self.command.line(setting), output, keep_checkpoints=False)
        except SystemExit as end:
            message = said.getvalue().partition("error: ")[2].partition("\nhelp: ")[0]
            if end.code != USAGE or not message:
                raise
            raise RunError(message) from None
        finally:
            output.write(said.getvalue())


def _configured_size(configs: Sequence[str]) -> int | None:
    """Return the number of training images that the configurations set; ``None`` if they leave it open."""
    paths = [path for path in map(Path, map(find_config, configs)) if path.is_file()]
    return ChainMap(*map(read_settings, reversed(paths))).get(SIZE.key)


def _shared(arguments: Namespace, flags: Sequence[str]) -> list[str]:
    return ["--experiment", arguments.experiment, *flags]
