"""Find, resume or train the runs of the campaign. Any number of workers share them."""

import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.errors import DataError
from overfitting_lab.campaign.plan import DOCS, AblationPage, Campaign, Entry
from overfitting_lab.campaign.reference import LARGEST, LOGS, collect, folder_of, reference_bytes, reference_runs
from overfitting_lab.cli import finished
from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.runs import Run, RunError, RunFiles, UsageError, runs_of
from overfitting_lab.runs.files import replace_file
from overfitting_lab.runs.recipe import decides, setting_name
from overfitting_lab.sweeps.workers import still_running

OWN = ("-c", "config", "experiment", "resume", "ckpt_path", "check", "trainer.logger", "trainer.default_root_dir")


@dataclass(frozen=True)
class State:
    """The seeds of an entry: those with a reference run, those whose run is in ``lightning_logs/``, and the others."""

    entry: Entry
    there: list[int]
    begun: dict[int, Run]  # finished or interrupted runs that are not collected yet
    missing: list[int]
    refused: list[str]  # reasons why a folder in reference/ does not count

    @property
    def to_train(self) -> list[int]:
        """The seeds that are missing or interrupted."""
        return sorted([*self.missing, *(seed for seed, run in self.begun.items() if not run.finished)])

    @property
    def left(self) -> list[int]:
        """The seeds without a reference run."""
        return sorted([*self.begun, *self.missing])


def states(entries: Sequence[Entry], campaign: Campaign, seeds: int | None) -> list[State]:
    """Return the state of each entry, with its own number of seeds or another. Nothing is trained."""
    local = [run for folder in finished.experiments(LOGS) for run in runs_of(folder) if run.usable]
    images = reference_images(campaign)
    local = [run for run in local if not images or run.summary.data.identity in images]
    return [_state(entry, seeds or entry.seeds, local) for entry in entries]


def reference_images(campaign: Campaign) -> dict[str, str]:
    """Return the name of the images of each reference run by their identity."""
    runs = [run for entry in campaign.runs.values() for run in reference_runs(entry).values()]
    return {run.summary.data.identity: run.summary.data.name for run in runs if run.summary.data.identity}


def _state(entry: Entry, seeds: int, local: Sequence[Run]) -> State:
    there = reference_runs(entry)
    begun: dict[int, Run] = {}
    for run in local:
        if run.summary.seed in range(seeds) and run.summary.seed not in there:
            with suppress(RunError):  # a damaged run is no run of ours
                if not entry.differences(run) and not (run.summary.seed in begun and not run.finished):
                    begun[run.summary.seed] = run
    left = [seed for seed in range(seeds) if seed not in there]
    folders = [folder_of(entry, seed) for seed in left if RunFiles(folder_of(entry, seed)).config.is_file()]
    refused = [f"{folder} {_refusal(entry, folder)}" for folder in folders]
    missing = [seed for seed in left if seed not in begun]
    return State(entry, [seed for seed in there if seed < seeds], begun, missing, refused)


def _refusal(entry: Entry, folder: Path) -> str:
    """Return why a folder in the place of a reference run is none."""
    try:
        keys = entry.differences(Run(folder))
    except RunError:
        keys = []
    return f"has other settings: {', '.join(keys)}" if keys else "is incomplete"


def is_there(ablation: AblationPage) -> bool:
    """Tell if an ablation's page is there, and was made with its flags."""
    page = DOCS / f"{ablation.name}.json"
    if not page.is_file():
        return False
    _, _, *made = shlex.split(json.loads(page.read_text(encoding="utf-8"))["command"])
    given, own = Counter(made), Counter(shlex.split(ablation.flags))
    return own <= given and not any(_is_fixed(flag) for flag in given - own if setting_name(flag) != "experiment")


def check_flags(given: Sequence[str]) -> None:
    """Refuse flags that would change what the campaign fixes.

    Raises:
        UsageError: if there is one.
    """
    for flag in filter(_is_fixed, given):
        raise UsageError(
            f"{flag.partition('=')[0]}: the campaign fixes this; only flags for the images and the device are free"
        )


def _is_fixed(flag: str) -> bool:
    name = setting_name(flag)
    return flag.startswith("-") and name != "data.source" and (decides(name) or name in OWN)


def check_images(campaign: Campaign, given: Sequence[str]) -> None:
    """Refuse images that are not those of the reference runs.

    Raises:
        UsageError: if they differ.
        DataError: if the images cannot be had.
    """
    known = reference_images(campaign)
    cli = ExperimentCLI(next(iter(campaign.runs.values())).line(0, given), keep=False)
    cli.datamodule.prepare_data()
    images = cli.datamodule.source.load()
    if known and images.identity not in known:
        raise UsageError(
            f"these images ({images.name}) are not the images of the reference runs ({', '.join(known.values())}): "
            f"give those (--data.source, --data.root), or move {LOGS}/reference away to begin a campaign of your own"
        )


def work(found: Sequence[State], given: Sequence[str]) -> int:
    """Find, resume or train every run that is missing, and collect its files. Return how many runs failed.

    A run that another worker has is left to it. Two lines are printed for each run.

    Args:
        found: what is missing.
        given: flags of ``fit.py`` for the images.
    """
    failed, others = 0, 0
    for entry, seed in ((state.entry, seed) for state in found for seed in state.left):
        name, folder = f"{entry.name}, seed {seed}", LOGS / entry.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / f".campaign_{seed}.lock", timeout=0):
                if seed not in reference_runs(entry):  # another worker may have made it since
                    print(f"begun      {name}: {entry.purpose}", flush=True)
                    _make(entry, seed, given)
                    print(f"done       {name}: {folder_of(entry, seed)}", flush=True)
        except Timeout:
            others += 1
        except (DataError, RunError) as error:
            print(f"failed     {name}: {error}", file=sys.stderr, flush=True)
            failed += 1
        except KeyboardInterrupt:
            print("stopped    the same command resumes", flush=True)
            raise
    if others:
        print(still_running(others, "run"), flush=True)
    return failed


def ablate(missing: Sequence[AblationPage], given: Sequence[str]) -> int:
    """Make ablations' pages, and copy those that no other worker still has a part of. Return how many failed."""
    failed = 0
    for ablation in missing:
        print(f"begun      {ablation.short_name}: {ablation.purpose}", flush=True)
        try:
            _make_page(ablation, given)
        except RunError as error:
            print(f"failed     {ablation.short_name}: {error}", file=sys.stderr, flush=True)
            failed += 1
    return failed


def _make_page(ablation: AblationPage, given: Sequence[str]) -> None:
    """Make an ablation's page by ``scripts/ablate.py``, and copy it.

    Raises:
        RunError: if a run failed.
    """
    script, folder = Path(sys.argv[0]).with_name("ablate.py"), LOGS / ablation.short_name
    before = {page: page.stat().st_mtime_ns for page in folder.glob("*.json")}  # of other flags, or of fewer trials
    status = finished.run_command([sys.executable, str(script), *ablation.line(given)], None)
    if status:
        raise RunError(f"scripts/ablate.py ended with status {status}; its message is above")
    written = [page for page in folder.glob("*.json") if page.stat().st_mtime_ns != before.get(page)]
    if not written:
        print(f"{ablation.short_name} has trials on other workers; run this command again when they have finished")
    (DOCS / ablation.name).parent.mkdir(exist_ok=True)
    for page, ending in product(written, (".md", ".png", ".json")):
        if page.with_suffix(ending).is_file():  # a figure that could not be drawn is missing
            replace_file(DOCS / f"{ablation.name}{ending}", partial(shutil.copy, page.with_suffix(ending)))


def _make(entry: Entry, seed: int, given: Sequence[str]) -> None:
    """Find or train a run, and collect it."""
    run = finished.finished_run(entry.line(seed, given), anywhere=True, keep_checkpoints=False)
    collect(run, folder_of(entry, seed), whole=seed == 0)
    if (size := reference_bytes()) > LARGEST:
        print(f"note       the reference runs have {size / 2**20:.0f} MiB, more than {LARGEST // 2**20}", flush=True)
