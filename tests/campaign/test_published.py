"""Every figure in the pages is what the reference runs say."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from overfitting_lab.campaign.pages import BLOCK, Results, digest, drawn_from
from overfitting_lab.campaign.plan import Campaign, read_plan
from overfitting_lab.campaign.reference import LARGEST, REFERENCE, reference_bytes
from overfitting_lab.campaign.work import is_there
from overfitting_lab.runs import Run
from tests.conftest import ROOT

DRAWN, SVG = re.compile(r"data:image/png;base64,([^\"&]*)"), re.compile(r"<svg.*?</svg>", re.DOTALL)
FIGURE = re.compile(r"± ?\d|\d ?%|\d points?\b|\d\.\d")
FOLDERS = sorted(path.relative_to(ROOT) for path in (ROOT / REFERENCE).glob("*/*"))
UPDATE = "run: python scripts/reproduce.py --pages"


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing a command line sets it, and this restores it
        monkeypatch.chdir(ROOT)
        yield read_plan()


@pytest.fixture(scope="module")
def results(campaign: Campaign) -> Results:
    return Results(campaign)


def test_pages_have_the_figures_of_the_reference_runs(campaign: Campaign, results: Results) -> None:
    for page in campaign.pages:
        assert Path(page).read_text() == results.filled(page), UPDATE


def test_ablation_pages_have_the_figures_of_the_reference_runs(campaign: Campaign, results: Results) -> None:
    for name, study in campaign.studies.items():
        page = results.page(study)
        assert Path("docs", f"{name}.md").read_text() == page.text, UPDATE
        assert Path("docs", f"{name}.json").read_text() == page.numbers, UPDATE


def test_pictures_are_of_the_reference_runs(campaign: Campaign, results: Results) -> None:
    for path in campaign.pictures:
        assert drawn_from(Path(path)) == digest(results.pictured(path)), UPDATE


def test_lessons_are_of_the_reference_runs(campaign: Campaign, results: Results) -> None:
    """Everything but the charts' lines and the pictures' compression, which depend on the versions of libraries."""
    for path in campaign.lessons:
        committed, fresh = Path(path).read_text(), results.lesson(path)
        assert len(committed.encode()) < 1.5e6
        assert SVG.sub("", DRAWN.sub("", committed)) == SVG.sub("", DRAWN.sub("", fresh)), UPDATE
        mine, its = DRAWN.findall(committed), DRAWN.findall(fresh)
        assert len(mine) > 30
        assert [_pixels(each) for each in mine] == [_pixels(each) for each in its], UPDATE


def _pixels(png: str) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return image.tobytes()


def test_no_figure_is_typed(campaign: Campaign) -> None:
    used = set()
    for page in campaign.pages:
        prose = BLOCK.sub("", Path(page).read_text())
        prose = re.sub(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)|sec\. [\d.]+", "", prose, flags=re.DOTALL | re.MULTILINE)
        used |= {text for text in campaign.typed if text in prose}
        for text in campaign.typed:
            prose = prose.replace(text, "")
        typed = [line for line in prose.splitlines() if FIGURE.search(line)]
        assert typed == [], f"{page}: move the figure into a block, or say in campaign.yaml why no run holds it"
    assert used == campaign.typed.keys(), "campaign.yaml explains figures that no page has"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_reference_run_is_small_and_is_a_run_of_the_campaign(folder: Path, campaign: Campaign) -> None:
    run = Run(folder)
    assert run.finished
    assert campaign.runs[folder.parent.name].differences(run) == []
    assert folder.name == f"version_{run.summary.seed}"
    assert run.settings["data.root"] == "FOLDER"
    assert not [value for value in run.settings.values() if isinstance(value, str) and Path(value).is_absolute()]
    files = {path.name.partition(".")[0] for path in folder.rglob("*") if path.is_file()}
    allowed = {"config", "summary", "metrics", "images"} | ({"curves", "events"} if run.summary.seed == 0 else set())
    assert files <= allowed


def test_the_reference_runs_are_small_together(campaign: Campaign) -> None:
    assert reference_bytes() <= LARGEST


@pytest.mark.parametrize(
    ("other", "setting"),
    [("augmentation", "data.augment"), ("images_2000", "data.train_size"), ("dropout", "model.dropout")],
)
def test_a_run_of_another_setting_is_no_run_of_an_entry(other: str, setting: str, campaign: Campaign) -> None:
    run = Run(Path("lightning_logs", "reference", other, "version_0"))
    assert campaign.runs["overfit"].differences(run) == [setting]


def test_a_run_with_a_schedule_is_no_run_of_an_entry_without(campaign: Campaign, tmp_path: Path) -> None:
    shutil.copytree(Path("lightning_logs", "reference", "overfit", "version_0"), folder := tmp_path / "version_0")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    schedule = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 40}}
    config["model"]["init_args"]["lr_scheduler"] = schedule
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert campaign.runs["overfit"].differences(Run(folder)) == ["model.lr_scheduler"]


def test_an_ablation_page_of_other_factors_is_not_there(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ablation = campaign.ablations["ablation/noise"]
    assert is_there(ablation)
    more = f"{ablation.flags} --factor data.cutout=0,8"
    assert not is_there(replace(ablation, flags=more))
    fewer = ablation.flags.partition(" --factor")[0]
    assert not is_there(replace(ablation, flags=fewer))
