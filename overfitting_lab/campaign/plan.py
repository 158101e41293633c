"""``docs/campaign.yaml``: the runs behind the published results, and what is made of them."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from datamodules import CIFAR10DataModule
from overfitting_lab.cli.replay import replayable
from overfitting_lab.cli.searches import ParsedExperiment
from overfitting_lab.distributed.last_words import say
from overfitting_lab.runs import Run, UsageError
from overfitting_lab.runs.recipe import flat, recipe, setting_name
from overfitting_lab.sweeps.factors import REMEDIES, SEED, SIZE, Factor

DOCS = Path("docs")
PLAN = DOCS / "campaign.yaml"
FACTORS = {factor.name: factor for factor in (*REMEDIES, SIZE)}
SIZES = ("train_size", "val_size")
BY_RUN = ("model.lr_scheduler.", "model.lr_scheduler_interval")  # the arguments of a schedule, such as its length
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One setting behind a figure: a command line of ``fit.py`` and the number of its seeds, which count from 0."""

    name: str  # folder of its runs in lightning_logs/ and in lightning_logs/reference/
    purpose: str
    flags: str  # of fit.py, without the flags for the images
    seeds: int

    def line(self, seed: int, given: Sequence[str] = ()) -> list[str]:
        """Return the arguments of ``fit.py`` for a seed; ``given`` are the flags for the images."""
        return [*shlex.split(self.flags), *given, f"--experiment={self.name}", f"--{SEED.key}={seed}"]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The settings of the flags that decide the result, without sizes that the number of images decides.

        Raises:
            SystemExit: if a flag is wrong.
        """
        try:
            cli = ParsedExperiment(self.line(0), keep=False)
        except SystemExit:  # the parser has said what is wrong
            say(f"in {PLAN}: {self.name}")
            raise
        data = CIFAR10DataModule(**cli.config.data)  # the split decides what is not given
        decided = {f"data.{name}": getattr(data, name) for name in ("augment", *SIZES)}
        settings = flat(yaml.safe_load(replayable(cli.parser, cli.config))) | decided
        return recipe(settings)

    def differences(self, run: Run) -> list[str]:
        """Return the settings in which a run differs from this entry, besides its seed and its images."""
        mine, its = self.recipe, run.recipe
        free = {SEED.key, "data.source", *(f"data.{name}" for name in SIZES if mine[f"data.{name}"] is None)}
        free |= {name for name in its if name.startswith(BY_RUN) and mine.get(name) is None}
        return sorted(key for key in (mine.keys() | its.keys()) - free if mine.get(key) != its.get(key))


@dataclass(frozen=True)
class Study:
    """An ablation page that is made of several entries."""

    name: str  # path of the page in docs/, without an ending
    runs: list[str]  # names of entries; the first one has every factor at its first level
    factors: list[str]
    worth: str | None = None  # beside a learning curve, the study of remedies whose worth in images the page tells

    @property
    def command(self) -> str:
        """The command that makes the page."""
        return f"python scripts/reproduce.py --only {self.short_name} --data.source folder --data.root FOLDER"

    @property
    def short_name(self) -> str:
        """The name without its folder."""
        return self.name.rpartition("/")[2]

    @property
    def varied(self) -> list[Factor]:
        """The factors."""
        return [FACTORS[name] for name in self.factors]


@dataclass(frozen=True)
class AblationPage:
    """An ablation page that ``scripts/ablate.py`` makes. Its JSON has every result; the runs are too many to keep."""

    name: str  # path of the page in docs/, without an ending
    purpose: str
    flags: str  # of ablate.py, without the flags for the images

    @property
    def short_name(self) -> str:
        """The name without its folder. It is the folder of the runs in ``lightning_logs/`` as well."""
        return self.name.rpartition("/")[2]

    def line(self, given: Sequence[str] = ()) -> list[str]:
        """Return the arguments of ``ablate.py``; ``given`` are the flags for the images."""
        return [*shlex.split(self.flags), f"--experiment={self.short_name}", *given]


@dataclass(frozen=True)
class Campaign:
    """The content of ``docs/campaign.yaml``."""

    runs: dict[str, Entry]
    studies: dict[str, Study] = field(default_factory=dict)
    ablations: dict[str, AblationPage] = field(default_factory=dict)
    # By path: the entries in the picture of a report, or the one whose curves are drawn.
    pictures: dict[str, str | list[str]] = field(default_factory=dict)
    lessons: dict[str, list[str]] = field(default_factory=dict)  # by path: the entries in an interactive page
    pages: list[str] = field(default_factory=list)  # paths of pages with blocks
    typed: dict[str, str] = field(default_factory=dict)  # figures in the pages' prose, and why no run holds them

    def chosen(self, names: Sequence[str] | None) -> tuple[list[Entry], list[AblationPage]]:
        """Return the entries and ablations with these names, in their order, and the entries of studies; or all.

        Raises:
            UsageError: if a name is unknown.
        """
        made_of = {name: [name] for name in self.runs}
        made_of |= {study.short_name: study.runs for study in self.studies.values()}
        ablations = {ablation.short_name: ablation for ablation in self.ablations.values()}
        if unknown := {*(names or ())} - made_of.keys() - ablations.keys():
            raise UsageError(f"--only {min(unknown)}: {PLAN} has {', '.join([*made_of, *ablations])}")
        names = names or [*made_of, *ablations]
        entries = dict.fromkeys(run for name in names for run in made_of.get(name, ()))
        return [self.runs[run] for run in entries], [each for name, each in ablations.items() if name in names]


def read_plan(path: Path = PLAN) -> Campaign:
    """Read the campaign.

    Raises:
        UsageError: if the file is missing or wrong.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing: start this script in the project's folder")
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        runs = {name: _made(Entry, name, {**value, "purpose": value["for"]}) for name, value in content["runs"].items()}
        studies = {name: _made(Study, name, value) for name, value in content.get("studies", {}).items()}
        ablations = {
            name: _made(AblationPage, name, {**value, "purpose": value["for"]})
            for name, value in content.get("ablations", {}).items()
        }
        campaign = Campaign(**{**content, "runs": runs, "studies": studies, "ablations": ablations})
        _check(campaign)
        return campaign
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is wrong: {type(error).__name__}: {error}") from error


def _made(kind: Callable[..., T], name: str, values: Mapping[str, Any]) -> T:
    try:
        return kind(name=name, **{key: value for key, value in values.items() if key != "for"})
    except TypeError as error:
        raise UsageError(f"{PLAN}: {name}: {error}") from error


def _check(campaign: Campaign) -> None:
    """Refuse names that nothing has."""
    used: Iterable[tuple[str, Sequence[str]]] = [
        *((name, study.runs) for name, study in campaign.studies.items()),
        *((path, [runs] if isinstance(runs, str) else runs) for path, runs in campaign.pictures.items()),
        *campaign.lessons.items(),
    ]
    for what, names in used:
        if unknown := [name for name in names if name not in campaign.runs]:
            raise UsageError(f"{PLAN}: {what} names {', '.join(unknown)}, which is no run of the campaign")
    for name, study in campaign.studies.items():
        if study.worth and study.worth not in campaign.studies:
            raise UsageError(f"{PLAN}: {name} names {study.worth}, which is no study of the campaign")
        if unknown := [factor for factor in study.factors if factor not in FACTORS]:
            raise UsageError(f"{PLAN}: {name} has {', '.join(unknown)}; known factors: {', '.join(FACTORS)}")
    for name, entry in campaign.runs.items():
        own = {"--experiment", f"--{SEED.key}", "--resume", "--check"}
        if given := sorted(own & {f"--{setting_name(flag)}" for flag in shlex.split(entry.flags)}):
            raise UsageError(f"{PLAN}: {name} has {given[0]}, which the campaign sets itself")
