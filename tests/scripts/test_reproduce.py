import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from overfitting_lab.campaign import estimate
from overfitting_lab.runs import Run, runs_of
from tests.conftest import ROOT, Flags, Script, summary_of, weights_of, write_images

LOGS = Path("lightning_logs")
REFERENCE = LOGS / "reference"
TEMPLATE = """
{% macro accuracy() %}
{{ runs.one.n }} seeds: {{ runs.one.text("test") }}
{% endmacro %}
{% macro other() %}
{{ runs.two.text("test") }}
{% endmacro %}
"""
PAGE = (
    "before\n<!-- campaign: accuracy -->\n<!-- end -->\nbetween\n<!-- campaign: other -->\nold\n<!-- end -->\nafter\n"
)


@pytest.fixture
def flags(quick: Flags) -> str:
    """Return flags of a run that takes a second, without the place of the images."""
    return " ".join(["--config=overfit", *(flag for flag in quick if "root" not in flag)])


@pytest.fixture
def docs(tmp_path: Path, flags: str) -> Path:
    """Write a campaign of two settings: ``one`` with two seeds, ``two`` with one."""
    folder = tmp_path / "docs"
    folder.mkdir()
    write_plan(folder, flags)
    (folder / "campaign.jinja").write_text(TEMPLATE)
    (folder / "page.md").write_text(PAGE)
    return folder


def write_plan(docs: Path, flags: str, **more: Any) -> None:
    plan = {
        "runs": {
            "one": {"for": "a figure", "flags": flags, "seeds": 2},
            "two": {"for": "another", "flags": f"{flags} --data.batch_size=25", "seeds": 1},
        },
        "pages": ["docs/page.md"],
        "lessons": {"docs/lesson.html": ["one"], "docs/missing.html": ["one", "two"]},
        "pictures": {"docs/picture.png": ["one"], "docs/curves.png": "one", "docs/missing.png": "two"},
        **more,
    }
    (docs / "campaign.yaml").write_text(yaml.safe_dump(plan))


def test_only_says_which_runs_and_in_which_order(run_script: Script, docs: Path) -> None:
    said = run_script("reproduce", "--dry-run", "--only", "two", "one", "two")
    assert said.status == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines() if "missing: seed" in line] == ["two", "one"]


@pytest.mark.thorough
def test_an_interrupted_run_of_another_experiment_is_resumed(
    run_script: Script, docs: Path, flags: str, image_folder: Path, fitted: list[list[str]]
) -> None:
    root, mine = f"--data.root={image_folder}", LOGS / "mine/version_0"
    assert run_script("fit", *flags.split(), root, "--experiment", "mine").status == 0
    summary = {**summary_of(mine), "status": "interrupted"}
    del summary["test"]
    (mine / "summary.json").write_text(json.dumps(summary))
    outcome = run_script("reproduce", "--only", "two", root)  # its batches have another size
    assert outcome.status == 0, outcome.err
    assert not any("--resume" in command for command in fitted)
    outcome = run_script("reproduce", "--only", "one", "--seeds", 1, root)
    assert outcome.status == 0, outcome.err
    assert fitted[-1][:2] == ["--resume", str(mine)]
    assert Run(mine).finished
    assert list(mine.rglob("*.ckpt")), "that run is someone else's"
    assert not list((LOGS / "one").glob("version_*"))


@pytest.mark.thorough
def test_what_is_missing_is_made_once_and_brings_its_figure_back(
    run_script: Script, docs: Path, flags: str, image_folder: Path, fitted: list[list[str]], tmp_path: Path
) -> None:
    root = f"--data.root={image_folder}"
    elsewhere = run_script("fit", *flags.split(), root, "--experiment=elsewhere", "--seed_everything=1")
    assert elsewhere.status == 0, elsewhere.err
    said = run_script("reproduce", "--dry-run", "--only", "one")
    assert said.status == 0, said.err
    assert (
        "there: none; seed 1: finished in lightning_logs/elsewhere/version_0; missing: seed 0, time unknown" in said.out
    )
    assert not REFERENCE.exists()

    outcome = run_script("reproduce", "--only", "one", root)
    assert outcome.status == 0, outcome.err
    assert len(fitted) == 1, "seed 1 was there"
    first, second = (REFERENCE / "one" / f"version_{seed}" for seed in (0, 1))
    assert [Run(folder).summary.seed for folder in (first, second)] == [0, 1]
    assert (first / "curves.png").is_file()
    assert list(first.rglob("events*"))
    assert sorted(path.name for path in second.iterdir()) == [
        "config.yaml",
        "images.npz",
        "metrics.csv",
        "summary.json",
    ]
    whole, small = Run(first).images, Run(second).images
    assert {"test_pictures", "train_pictures"} <= whole.keys() - small.keys()
    assert whole["test_logits"].shape == small["test_logits"].shape
    assert run_script("compare", second, "--output=seed").status == 0
    report = (tmp_path / "seed/report.html").read_text()
    assert "These runs kept no pictures of test images." in report
    assert "The pictures that a network gets wrong" not in report
    contents = b"".join(path.read_bytes() for path in REFERENCE.rglob("*") if path.is_file())
    assert str(image_folder).encode() not in contents
    assert str(tmp_path).encode() not in contents
    assert Run(first).settings["data.root"] == "FOLDER"
    assert not list((LOGS / "one").rglob("*.ckpt")), "checkpoints are most of a run's size"
    assert list((LOGS / "elsewhere").rglob("*.ckpt")), "that run is someone else's"
    page = (docs / "page.md").read_text()
    tests = [100 * summary_of(folder)["test"]["acc"] for folder in (first, second)]
    assert f"2 seeds: {sum(tests) / 2:.1f} ± {abs(tests[0] - tests[1]) / 2**0.5:.1f} %" in page
    assert "Not measured yet: `python scripts/reproduce.py --only two` makes the runs.\n<!-- end -->\nafter\n" in page
    assert {path.name for path in docs.glob("*.png")} == {"picture.png", "curves.png"}
    assert [path.name for path in docs.glob("*.html")] == ["lesson.html"]
    assert str(summary_of(first)["best"]["epoch"] + 1) in re.findall(
        r'data-epoch="(\d+)"', (docs / "lesson.html").read_text()
    )

    again = run_script("reproduce", "--only", "one")
    assert again.out == "written nothing: all pages are up to date\n"
    weights = weights_of(LOGS / "one/version_0")
    shutil.rmtree(first)
    shutil.rmtree(LOGS / "one")
    assert "there: seed 1; missing: seed 0, 0:00 to 0:00 h" in run_script("reproduce", "--dry-run", "--only", "one").out
    summary = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps({**summary, "device": "cuda"}))
    said = run_script("reproduce", "--dry-run", "--only", "one")
    assert "missing: seed 0, time unknown: no run of this network on such a device tells it" in said.out
    (second / "summary.json").write_text(json.dumps(summary))
    assert run_script("reproduce", "--only", "one", root).status == 0
    assert (docs / "page.md").read_text() == page
    assert all((weights_of(LOGS / "one/version_0")[name] == value).all() for name, value in weights.items())

    other = write_images(tmp_path / "other", 180, 15)
    refused = run_script("reproduce", "--only", "two", f"--data.root={other}")
    assert (refused.status, len(fitted)) == (2, 2)
    assert "these images (other) are not the images of the reference runs (tiny)" in refused.err

    (first / "summary.json").rename(first / "kept")
    broken = run_script("reproduce", "--dry-run", "--only", "one")
    assert broken.status == 0, broken.err
    assert "lightning_logs/reference/one/version_0 is incomplete" in broken.out
    (first / "kept").rename(first / "summary.json")
    write_plan(docs, f"{flags} --data.cutout=2")
    changed = run_script("reproduce", "--dry-run", "--only", "one", "--seeds", 1)
    assert "lightning_logs/reference/one/version_0 has other settings: data.cutout" in changed.out


def test_workers_share_the_runs_and_a_failed_one_does_not_stop_the_others(
    run_script: Script, docs: Path, flags: str, image_folder: Path, fitted: list[list[str]]
) -> None:
    write_plan(docs, f"{flags} --data.train_size=1000")  # there are fewer images
    (LOGS / "one").mkdir(parents=True)
    with FileLock(LOGS / "one" / ".campaign_1.lock"):
        outcome = run_script("reproduce", f"--data.root={image_folder}")
    assert outcome.status == 1
    assert "failed     one, seed 0: " in outcome.err
    assert "1 run is running on other workers; run this command again when they have finished" in outcome.out
    assert "2 runs failed; start this again to try once more" in outcome.err
    assert fitted == [], "the images were counted before any training"


@pytest.mark.thorough
def test_an_ablation_is_made_once_and_fills_its_block(
    run_script: Script,
    fitted: list[list[str]],
    docs: Path,
    flags: str,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = flags.replace("--config=overfit", "--seeds=1").replace("--data.train_size", "--train_size")
    ablation = {"for": "worth", "flags": f"{line} --factor model.dropout=0,0.5"}
    write_plan(docs, flags, ablations={"ablation/worth": ablation})
    (docs / "campaign.jinja").write_text(
        """{% macro accuracy() %}
{% for cell in ablation("ablation/worth") %}
{{ cell.changed }} n={{ cell.n }} {{ cell.text("test") }} {{ cell.gains.test.in_points() }}
{% endfor %}
{% endmacro %}
{% macro other() %}{% endmacro %}"""
    )
    assert "worth                        missing" in run_script("reproduce", "--dry-run", "--only", "worth").out
    assert run_script("reproduce", "--pages").out.startswith("written docs/page.md")
    assert not (docs / "ablation").exists(), "--pages trains nothing"
    (LOGS / "worth").mkdir(parents=True)
    (LOGS / "worth/factorial.json").write_text("{}")  # of other flags, or of fewer seeds
    with monkeypatch.context() as others:
        others.setattr("overfitting_lab.cli.finished.run_command", lambda *_: 0)
        outcome = run_script("reproduce", "--only", "worth", f"--data.root={image_folder}")
    assert "worth has trials on other workers" in outcome.out
    with monkeypatch.context() as others:
        others.setattr("overfitting_lab.cli.finished.run_command", lambda *_: 1)
        outcome = run_script("reproduce", "--only", "worth", f"--data.root={image_folder}")
    assert (outcome.status, outcome.out.splitlines()[-1]) == (1, "written nothing: all pages are up to date")
    assert "failed     worth: scripts/ablate.py ended with status 1; its message is above" in outcome.err
    assert "1 run failed; start this again to try once more" in outcome.err
    assert not (docs / "ablation/worth.json").exists(), "a page that was there may be another one"
    outcome = run_script("reproduce", "--only", "worth", f"--data.root={image_folder}")
    assert outcome.status == 0, outcome.err
    page = json.loads((docs / "ablation/worth.json").read_text())
    none, dropout = (trial["test_acc"] for trial in page["trials"])
    text = (docs / "page.md").read_text()
    assert f"{{}} n=1 {100 * none:.1f} % +0.0\n" in text
    assert f"{{'dropout': 0.5}} n=1 {100 * dropout:.1f} % {100 * (dropout - none):+.1f}\n" in text
    assert str(tmp_path) not in "".join((docs / f"ablation/worth.{ending}").read_text() for ending in ("md", "json"))
    assert (docs / "ablation/worth.png").is_file()
    assert "worth                        there" in run_script("reproduce", "--dry-run", "--only", "worth").out
    write_plan(docs, flags, ablations={"ablation/worth": {**ablation, "flags": f"{ablation['flags']},0.2"}})
    assert "worth                        missing" in run_script("reproduce", "--dry-run", "--only", "worth").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "three"), "--only three: docs/campaign.yaml has one, two"),
        (("--trainer.max_epochs=3",), "--trainer.max_epochs: the campaign fixes this"),
        (("--config", "vgg16_32"), "--config: the campaign fixes this"),
    ],
)
def test_refuses_what_the_campaign_does_not_have(
    run_script: Script, docs: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = run_script("reproduce", *arguments)
    assert outcome.status == 2
    assert message in outcome.err


@pytest.mark.parametrize(
    ("plan", "page", "message"),
    [
        ({"pictures": {"docs/a.png": "three"}}, PAGE, "docs/a.png names three, which is no run of the campaign"),
        ({"unknown": 1}, PAGE, "docs/campaign.yaml is wrong: TypeError"),
        ({}, PAGE.replace("old\n<!-- end -->", ""), "needs one <!-- end -->"),
        ({}, PAGE.replace("other", "third"), "campaign.jinja has no macro third"),
    ],
)
def test_a_wrong_campaign_is_one_message(
    run_script: Script, docs: Path, flags: str, image_folder: Path, plan: dict[str, Any], page: str, message: str
) -> None:
    write_plan(docs, flags, **plan)
    (docs / "page.md").write_text(page)
    (LOGS / "two").mkdir(parents=True)
    with FileLock(LOGS / "two" / ".campaign_0.lock"):  # nothing is to be trained
        outcome = run_script("reproduce", "--only", "two", f"--data.root={image_folder}")
    assert outcome.status == 2, outcome.err
    assert message in outcome.err


@pytest.mark.thorough
def test_a_fresh_clone_says_what_is_there_and_what_is_not(
    run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "BATCH", 2)
    monkeypatch.setattr(estimate, "TIMED", 0)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    LOGS.mkdir()
    (tmp_path / REFERENCE).symlink_to(ROOT / REFERENCE)
    outcome = run_script("reproduce", "--dry-run", "--seeds", 9)
    assert outcome.status == 0, outcome.err
    plan = yaml.safe_load((ROOT / "docs/campaign.yaml").read_text())
    lines, ablations = outcome.out.splitlines(), [name.rpartition("/")[2] for name in plan["ablations"]]
    assert [line.split()[0] for line in lines] == [*plan["runs"], *ablations, "missing", "estimate"]
    for line, name in zip(lines, plan["runs"], strict=False):
        there = sorted(run.summary.seed for run in runs_of(ROOT / REFERENCE / name))
        (said,) = re.findall("there: (?:none|seeds? ([0-9, ]+));", line)
        assert [int(seed) for seed in said.split(", ") if seed] == there
        low, high = (
            re.findall(r"(\d+):(\d\d) to (\d+):(\d\d) h", line)[0][:2],
            re.findall(r"to (\d+):(\d\d) h", line)[0],
        )
        assert int(low[0]) * 60 + int(low[1]) <= int(high[0]) * 60 + int(high[1])
