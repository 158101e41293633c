"""The commands in the pages and in the configurations' headers can be typed: script, configurations, flags."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.cli.configurations import find_config
from tests.conftest import ROOT, Outcome
from tests.docs.test_links import PAGES, text_of

A_RUNS_CONFIG = re.compile(r"lightning_logs/\S+/config\.yaml")


def commands() -> list[tuple[str, str]]:
    """Return each script that is called, with its arguments."""
    text = "\n".join(
        block.replace("\\\n", " ")
        for page in PAGES
        for block in re.findall(r"^```bash\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    )
    headers = [re.findall("^#.*", path.read_text(), re.MULTILINE) for path in (ROOT / "configs").rglob("*.yaml")]
    text = "\n".join([text, *(line for header in headers for line in header)]).replace("$SLURM_ARRAY_TASK_ID", "0")
    return sorted(set(re.findall(r"(?<= )scripts/(\w+)\.py *(.*?)[\"']?$", text, re.MULTILINE)))


@pytest.fixture(scope="module")
def parser() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # building sets it: have it restored
        yield ExperimentCLI(["--config=overfit.yaml"], keep=False).parser


def test_there_are_commands_of_every_script() -> None:
    assert {script for script, _ in commands()} == {path.stem for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize(("script", "arguments"), commands())
def test_command_can_be_typed(script: str, arguments: str, parser: Any, run_script: Callable[..., Outcome]) -> None:
    first, *flags = re.split(r" +(?=--\w)", f" {A_RUNS_CONFIG.sub('overfit.yaml', arguments)}")
    assert [name for name in first.split() if name.endswith(".yaml") and not Path(find_config(name)).is_file()] == []
    if script != "fit":  # flags that a script does not know go to fit.py
        own = re.findall(r"--[\w-]+", run_script(script, "--help").out)
        flags = [flag for flag in flags if re.split("[ =]", flag)[0] not in own]
        configs = re.findall(r"--config[ =](\S+)", arguments) or ["overfit.yaml"]
        varied = re.findall(r"--(?:factor|search)[ =]([\w.]+)=(\S+)", arguments)
        levels = [f"--{key}={level}" for key, texts in varied for level in re.split(r",|\.\.", texts)]
        flags = [*(f"--config={name}" for name in configs), *flags, *levels]
    elif "--resume" in arguments:
        flags = ["--config=overfit.yaml", *flags]
    try:
        parser.parse_args(shlex.split(" ".join(flags), comments=True))
    except SystemExit as end:
        if end.code:  # --help and --print_config exit with 0
            raise
