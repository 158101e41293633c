"""Factors of a study, and the command lines of its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OFF, ON = "off", "on"


@dataclass(frozen=True)
class Factor:
    """A setting of ``fit.py`` whose value differs between trials, or a configuration that some trials have on top."""

    name: str  # in the storage, in tables and in names of files
    key: str  # the setting, such as model.dropout, or the configuration, such as optimizer/adam
    levels: tuple[Any, ...] = ()  # numbers, text, booleans or None; the first one is the baseline
    sets: frozenset[str] = frozenset()  # settings in the configuration; empty if the factor is a setting
    digest: str = ""  # of what the configuration changes; empty if the factor is a setting

    @property
    def numeric(self) -> bool:
        """True if all levels are numbers."""
        return all(isinstance(level, int | float) and not isinstance(level, bool) for level in self.levels)


REMEDIES = (
    Factor("dropout", "model.dropout", (0.0, 0.5)),
    Factor("weight_decay", "model.optimizer.weight_decay", (0.0, 1e-4)),
    Factor("augment", "data.augment", ("none", "flip_crop")),
)
SIZE, SUBSET, SEED = (
    Factor("size", "data.train_size"),
    Factor("subset", "data.subset"),
    Factor("seed", "seed_everything"),
)


@dataclass(frozen=True)
class Command:
    """The command line of ``fit.py`` that all trials have in common, and the factors that each trial adds to it."""

    configs: Sequence[str]
    flags: Sequence[str]
    factors: Sequence[Factor]

    def line(self, setting: Mapping[str, Any]) -> list[str]:
        """Return the arguments for a setting: levels of factors, and perhaps a subset and a seed, by name."""
        varied = [factor for factor in (*self.factors, SUBSET, SEED) if not factor.sets and factor.name in setting]
        levels = [
            f"--{factor.key}={'null' if setting[factor.name] is None else setting[factor.name]}" for factor in varied
        ]
        on = [factor.key for factor in self.factors if factor.sets and setting.get(factor.name) == ON]
        configs = [*self.configs, *on]
        return [*(f"--config={name}" for name in configs), *self.flags, *levels]
