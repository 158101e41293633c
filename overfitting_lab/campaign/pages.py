"""The pages with the figures of the reference runs: blocks between markers, ablation pages and pictures."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from jinja2 import Template, TemplateError
from matplotlib.figure import Figure
from PIL import Image

from overfitting_lab.campaign.plan import DOCS, Campaign, Study
from overfitting_lab.campaign.reference import LOGS, reference_runs
from overfitting_lab.campaign.values import Cell, Measured, NotMeasuredError, alike, cells_of, difference
from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.report import html_page, overview
from overfitting_lab.runs import Run, UsageError
from overfitting_lab.runs.figures import curves, write_figure
from overfitting_lab.runs.files import replace_file, write_text
from overfitting_lab.runs.templates import read_template
from overfitting_lab.sweeps.designs import Design, design_of
from overfitting_lab.sweeps.effects import effects
from overfitting_lab.sweeps.names import effect_name
from overfitting_lab.sweeps.pages import Page, page_of
from overfitting_lab.sweeps.trial import Trial

BLOCKS = DOCS / "campaign.jinja"
BENCHMARK = DOCS / "benchmark" / "benchmark.json"
LESSON = Path(__file__).with_name("templates") / "lesson.html"
BLOCK = re.compile(r"(<!-- campaign: (\w+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)
SOURCE = "Source"  # key of a PNG's text: a digest of the runs in the picture


class Results:
    """All that the reference runs and the ablations say."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self.runs = {name: Measured(entry, reference_runs(entry)) for name, entry in campaign.runs.items()}

    @cached_property
    def _blocks(self) -> Template:
        """The macros of the pages' blocks."""
        return read_template(BLOCKS)

    def _levels(self, study: Study) -> dict[str, dict[str, Any]]:
        """Return the levels of a study's entries. The images decide some of them, so that a run knows them best."""
        levels = {}
        for name in study.runs:
            found = self.runs[name]
            known = found.run.recipe if found.runs else found.entry.recipe
            first = {factor.key: factor.levels[0] for factor in study.varied if factor.levels}
            levels[name] = {factor.name: {**first, **known}.get(factor.key) for factor in study.varied}
        return levels

    def study(self, study: Study) -> tuple[Design, list[Trial]]:
        """Return the design of a study, and the trials of its entries.

        Raises:
            NotMeasuredError: if an entry has none.
        """
        levels = self._levels(study)
        trials = [
            replace(trial, setting={**levels[found.entry.name], **trial.setting})
            for found in alike([self.runs[name] for name in study.runs])
            for trial in found.trials
        ]
        factors = [
            replace(factor, levels=tuple(dict.fromkeys(each[factor.name] for each in levels.values())))
            for factor in study.varied
        ]
        return design_of(factors, alone=False, full=True), trials

    def page(self, study: Study) -> Page:
        """Return the page of a study.

        Raises:
            NotMeasuredError: if an entry has no run.
        """
        design, trials = self.study(study)
        remedied = self.study(self._campaign.studies[study.worth]) if study.worth else None
        sizes = {run.summary.data.train_size for name in study.runs for run in self.runs[name].runs.values()}
        size = min(sizes) if len(sizes) == 1 else None
        if study.worth:
            size = self.runs[self._campaign.studies[study.worth].runs[0]].run.summary.data.train_size
        return page_of(design, trials, {"train_size": size, "command": study.command}, remedied)

    def effects(self, name: str) -> dict[str, Any]:
        """Return the effects of a factorial by name, each on test accuracy, gap and calibration error."""
        design, trials = self.study(self._campaign.studies[name])
        found = [effects(design, trials, response) for response in ("test_acc", "gap", "calibration_error")]
        return {effect_name(each[0].terms): [one.estimate for one in each] for each in zip(*found, strict=True)}

    def ablation(self, name: str) -> list[Cell]:
        """Return the cells of an ablation from its page's JSON, the first levels first.

        Raises:
            NotMeasuredError: if there is no such page.
        """
        ablation = self._campaign.ablations[name]
        if not (trials := results_of(name)):
            raise NotMeasuredError(ablation.short_name)
        return cells_of(trials)

    def block(self, name: str, argument: str | None = None) -> str:
        """Return the text of a block, or a sentence that says what is missing for it.

        Args:
            name: of a macro in the template.
            argument: of the macro, if it has one.

        Raises:
            UsageError: if the template has no such block or is wrong.
        """
        content = {
            "runs": self.runs,
            "alike": lambda *names: alike([self.runs[each] for each in names]),
            "difference": difference,
            "effects": self.effects,
            "ablation": self.ablation,
            "costs": costs(),
            "percent": lambda fraction: f"{100 * fraction:.1f} %",
            "points": lambda fraction: f"{100 * fraction:.1f}",
        }
        try:
            blocks = self._blocks.make_module(content)
            if not hasattr(blocks, name):
                raise UsageError(f"{BLOCKS} has no macro {name}")
            arguments = [] if argument is None else [argument]
            return f"{str(getattr(blocks, name)(*arguments)).strip()}\n"
        except NotMeasuredError as error:
            return f"Not measured yet: `python scripts/reproduce.py --only {error}` makes the runs.\n"
        except TemplateError as error:
            raise UsageError(f"{BLOCKS}: {name}: {error}") from error

    def filled(self, page: str) -> str:
        """Return the text of a page with the blocks of today.

        Raises:
            UsageError: if a marker is not closed, or a block is unknown.
        """
        text = Path(page).read_text(encoding="utf-8")
        if {text.count("<!-- campaign: "), text.count("<!-- end -->")} != {len(BLOCK.findall(text))}:
            raise UsageError(f"{page}: every <!-- campaign: NAME --> needs one <!-- end -->")
        return BLOCK.sub(lambda match: f"{match[1]}{self.block(match[2], match[3])}{match[4]}", text)

    def pictured(self, path: str) -> list[Run]:
        """Return the runs in a picture.

        Raises:
            NotMeasuredError: if an entry has no run.
        """
        names = self._campaign.pictures[path]
        if isinstance(names, str):
            return [self.runs[names].run]
        entries = [self.runs[name] for name in names]
        return [run for entry in entries for run in (entry.runs.values() or [entry.run])]

    def lesson(self, path: str) -> str:
        """Return the text of a page whose reader moves over the epochs of runs, the first seed of each entry.

        Raises:
            NotMeasuredError: if an entry has no run.
        """
        runs = [self.runs[name].run for name in self._campaign.lessons[path]]
        return html_page(Comparison(runs), LESSON)

    def draw(self, path: str) -> Figure:
        """Draw a picture: the curves of one run, or the picture of a report on several.

        Raises:
            NotMeasuredError: if an entry has no run.
        """
        runs, names = self.pictured(path), self._campaign.pictures[path]
        if isinstance(names, str):
            return curves(runs[0].records, f"{names}, seed {runs[0].summary.seed}")
        return overview(Comparison(runs))


def digest(runs: Sequence[Run]) -> str:
    """Return a digest of what runs measured."""
    files = [file for run in runs for file in (run.files.metrics, run.files.summary)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def results_of(name: str) -> list[Trial]:
    """Return the results in the JSON of an ablation's page, such as ``ablation/remedies``; none if there is no page."""
    path = DOCS / f"{name}.json"
    if not path.is_file():
        return []
    return [Trial(**trial) for trial in json.loads(path.read_text(encoding="utf-8"))["trials"]]


def costs() -> dict[str, Any]:
    """Return the time of a training step with each method, divided by the time of one without, as it was measured."""
    measured = json.loads(BENCHMARK.read_text(encoding="utf-8")) if BENCHMARK.is_file() else {}
    return dict(measured.get("remedies", {}).get("results", {}))


def drawn_from(path: Path) -> str:
    """Return the digest of the runs in a picture that was written; empty for another picture, or none."""
    if not path.is_file():
        return ""
    with Image.open(path) as image:
        return str(image.info.get(SOURCE, ""))


def write_pages(campaign: Campaign) -> list[Path]:
    """Bring blocks, ablation pages and pictures up to date. Return the paths of the files that changed.

    An ablation page or picture stays as it is if a run for it is missing.

    Raises:
        UsageError: if a page or the template is wrong.
    """
    LOGS.mkdir(exist_ok=True)
    with FileLock(LOGS / ".campaign.lock"):  # else a worker might write what another one has just brought up to date
        return list(_written(campaign, Results(campaign)))


def _written(campaign: Campaign, results: Results) -> Iterator[Path]:
    for name, study in campaign.studies.items():
        with suppress(NotMeasuredError):
            page = results.page(study)
            written = _content(DOCS / f"{name}.md", DOCS / f"{name}.json") == [page.text, page.numbers]
            if not written or not (DOCS / f"{name}.png").is_file():
                yield from page.write(DOCS / name)
    for name in campaign.pictures:
        with suppress(NotMeasuredError):
            if drawn_from(Path(name)) != (source := digest(results.pictured(name))):
                _save(Path(name), results.draw(name), source)
                yield Path(name)
    for name in campaign.lessons:
        with suppress(NotMeasuredError):
            yield from _updated(Path(name), results.lesson(name))
    for name in campaign.pages:
        yield from _updated(Path(name), results.filled(name))


def _updated(path: Path, text: str) -> Iterator[Path]:
    if _content(path) != [text]:
        write_text(path, text)
        yield path


def _content(*paths: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") if path.is_file() else "" for path in paths]


def _save(path: Path, figure: Figure, source: str) -> None:
    settings = {"dpi": 120, "format": "png", "metadata": {SOURCE: source}}
    replace_file(path, lambda new: write_figure(figure, new, **settings))
