import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.moments import Moments
from overfitting_lab.comparison.report import write_report
from overfitting_lab.runs import Run
from tests.conftest import ROOT
from tests.made_runs import CLASSES, CURVES, SOUND, make_run

RANDOM = np.random.default_rng(0)
GOOD, POOR = RANDOM.random(120) < 0.8, RANDOM.random(120) < 0.4
FOUND = {
    "code": "over_fitting",
    "severity": "note",
    "what": "it over-fits | from here",
    "evidence": "see <b>there</b>",
    "remedy": "--model.dropout 0.5",
    "layers": [],
    "epoch": 2,
    "step": 6,
}

TESTED = {"checkpoint": "best", "loss": 1.0, "acc": float(GOOD.mean()), "images": 120, "temperature": 1.25}
TESTED |= {"calibration_error_at_temperature": 0.01}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on two made runs."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        make_run(folder / "logs/plain <b>/version_0", POOR, diagnosis=[FOUND]),
        make_run(folder / "logs/dropout/version_0", GOOD, dropout=0.5, seconds=600.0, probe=0.9, test=TESTED),
    ]
    write_report(Comparison([Run(run) for run in runs]), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium or Chrome, without a window."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("there is no Chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync",
                 "disable-component-update", "no-first-run", "disable-dev-shm-usage"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_page_load_timeout(60)
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The report in a wide window with light colours."""
    show(browser, report, width=1200, dark=False)
    return browser


def show(browser: Any, report: Path, *, width: int, dark: bool) -> None:
    show_page(browser, report / "report.html", width=width, dark=dark)


def show_page(browser: Any, path: Path, *, width: int, dark: bool) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.get(path.as_uri())


def test_the_page_needs_nothing_else_and_has_no_errors(page: Any) -> None:
    asked = [
        entry["message"] for entry in page.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]
    ]
    addresses = {match for message in asked for match in re.findall(r'"url":"(\w+):', message)}
    assert addresses <= {"file", "data"}
    assert page.get_log("browser") == []
    assert page.execute_script("return [...document.images].every(image => image.naturalWidth === 32)")
    assert page.execute_script("return document.images.length") == 2 * (24 + 24 + 7 + 8)
    names = page.execute_script("return [...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(names) == len(set(names))


def test_what_the_page_says(page: Any) -> None:
    text = page.find_element(By.TAG_NAME, "main").text
    for words in (
        f"By test accuracy: dropout {GOOD.mean():.1%}, plain <b> {POOR.mean():.1%}.",
        "dropout trained 10.0 times as long as plain <b>.",
        "model.dropout",
        "over_fitting (note, step 6): it over-fits | from here",
        "see <b>there</b>",
        "McNemar, exact",
        "not learned",
        "forgotten 3 times",
        "made <by hand>",
    ):
        assert words in text
    table = page.find_element(By.CSS_SELECTOR, "[aria-label='test accuracy by class'] table").text
    share = POOR[np.arange(120) % 3 == 0].mean()
    assert f"{CLASSES[0]} {share:.1%}" in table
    first = int(np.flatnonzero(~POOR)[0])
    mistake = page.find_element(By.CSS_SELECTOR, "#mistakes ~ details .pictures li").text
    assert mistake == f"{CLASSES[(first + 1) % 3]} 90.0%\nis {CLASSES[first % 3]}"


def test_runs_are_hidden_and_shown_by_the_keyboard_alone(page: Any) -> None:
    def visible(run: int) -> int:
        lines = page.find_elements(By.CSS_SELECTOR, f"svg .run-{run}")
        assert len(lines) >= 6  # training and validation of loss and accuracy, the gap, memorization
        return sum(line.is_displayed() for line in lines)

    both = visible(0), visible(1)
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "skip to the conclusions"
    assert page.switch_to.active_element.is_displayed()
    reached = []
    for _ in range(60):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("id"))
        if reached[-1] == "show-1":
            break
    assert "show-0" in reached
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert (visible(0), visible(1)) == (both[0], 0)
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert (visible(0), visible(1)) == both
    regions = page.find_elements(By.CSS_SELECTOR, ".scroll")
    assert regions
    assert all(region.get_attribute("tabindex") == "0" and region.get_attribute("aria-label") for region in regions)


def test_the_epoch_moves_by_slider_keys_and_pointer(page: Any) -> None:
    def row(run: int) -> list[str]:
        return page.find_element(By.CSS_SELECTOR, f".moment .run-{run}").text.split()  # type: ignore[no-any-return]

    def left(run: int) -> tuple[str, int]:
        wall = page.find_element(By.CSS_SELECTOR, f"section.run-{run}")
        wrong = wall.find_elements(By.CSS_SELECTOR, "[data-until]:not(.right) [class^='picture-']")
        return wall.find_element(By.CSS_SELECTOR, "[data-name='left']").text, len(wrong)

    def cursor() -> float:
        line = page.find_element(By.CSS_SELECTOR, "svg .cursor")
        chart = line.find_element(By.XPATH, "..").rect
        return float((line.rect["x"] - chart["x"]) / chart["width"])

    slider = page.find_element(By.ID, "epoch")
    certainty = [f"{100 * math.exp(-loss):.1f}%" for _, _, loss, _ in CURVES if loss is not None]
    assert row(0) == [
        "plain",
        "<b>",
        "without",
        "a",
        "probe",
        "100.0%",
        "40.0%",
        "60.0",
        "0.10",
        "2.40",
        certainty[4],
        "16.7%",
    ]
    assert row(1) == ["dropout", "90.0%", "40.0%", "50.0", "0.90", "2.40", certainty[4], "16.7%"]
    assert left(0) == ("5", 4)  # of 30 images, of which 24 have pictures
    places = [cursor()]
    slider.send_keys(Keys.ARROW_LEFT)
    assert row(0)[5:] == ["90.0%", "40.0%", "50.0", "0.20", "2.00", certainty[3], "33.3%"]
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_LEFT)
    assert left(0) == ("15", 12)
    places.append(cursor())
    slider.send_keys(Keys.HOME)
    assert row(1)[1:] == ["90.0%", "30.0%", "60.0", "0.90", "1.50", certainty[0], "83.3%"]
    places.append(cursor())
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=0.01)
    chart = page.find_element(By.XPATH, "(//*[@class='cursor'])[1]/..")
    across = round(chart.rect["width"] * (places[1] - 0.5))
    ActionChains(page).move_to_element_with_offset(chart, across, 0).click().perform()
    assert slider.get_property("value") == "3"
    ActionChains(page).click_and_hold(chart).move_by_offset(chart.rect["width"], 0).release().perform()
    assert slider.get_property("value") == "5"
    page.find_element(By.CSS_SELECTOR, "section.run-0 button").click()
    assert page.find_element(By.CSS_SELECTOR, ".slider output").text == "2", "the epoch that was tested"
    page.find_element(By.ID, "show-0").click()
    assert not page.find_element(By.CSS_SELECTOR, ".moment .run-0").is_displayed()
    assert not page.find_element(By.CSS_SELECTOR, "section.run-0").is_displayed()


def test_the_answers_of_every_run_to_the_same_test_images(page: Any) -> None:
    """Of the images that one of the two runs got wrong, each run has its own answer."""
    answers = [page.find_elements(By.CSS_SELECTOR, f"section.run-{run} li:not([data-until])") for run in (0, 1)]
    assert [len(each) for each in answers] == [36, 36]
    wrong = [[item.get_attribute("class") == "wrong" for item in each] for each in answers]
    assert wrong[0] != wrong[1]
    assert all(map(any, zip(*wrong, strict=True)))
    assert {item.text.split()[1] for each in answers for item in each} == {"90%"}
    assert page.execute_script(
        "return [...document.querySelectorAll('.wall i')].every("
        "tile => getComputedStyle(tile).backgroundImage.startsWith('url(\"data:image/png'))"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_follows_the_colours_of_the_system(dark: bool, browser: Any, report: Path) -> None:
    show(browser, report, width=360, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    shades = browser.execute_script(
        "const style = getComputedStyle(document.body), ink = document.querySelector('svg text');"
        "return [style.backgroundColor, style.color, getComputedStyle(ink).fill]"
    )
    paper, ink, chart = (sum(map(int, re.findall(r"\d+", shade)[:3])) / 3 for shade in shades)
    assert (paper < 50, ink > 200) == (dark, dark)
    assert chart == ink


@pytest.mark.parametrize("dark", [False, True])
def test_the_lesson_fits_a_phone_and_moves(dark: bool, browser: Any) -> None:
    show_page(browser, ROOT / "docs/lesson.html", width=400, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 400
    assert browser.get_log("browser") == []
    slider = browser.find_element(By.ID, "epoch")
    slider.send_keys(Keys.HOME)
    browser.execute_script("document.querySelector('section.run-0').scrollIntoView()")
    assert 0 <= browser.execute_script("return arguments[0].getBoundingClientRect().top", slider) < 10, "it sticks"
    first = browser.find_elements(By.CSS_SELECTOR, "section.run-0 [data-until].right")
    slider.send_keys(Keys.END)
    assert len(browser.find_elements(By.CSS_SELECTOR, "section.run-0 [data-until].right")) > len(first)
    shown = [run.is_displayed() for run in browser.find_elements(By.CSS_SELECTOR, ".moment tbody tr")]
    assert shown == [place < 3 for place in range(len(shown))]


def test_it_prints(browser: Any, report: Path) -> None:
    show(browser, report, width=1200, dark=False)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()
    assert all(region.value_of_css_property("overflow") == "visible"
               for region in browser.find_elements(By.CSS_SELECTOR, ".scroll"))  # fmt: skip


def test_the_text_has_the_same_tables(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert "![Loss, accuracy, gap and test accuracy](report.png)" in text
    assert f"| dropout | 1 | {GOOD.mean():.1%} (" in text
    errors = [f"{abs(0.9 - right.mean()):.3f}" for right in (POOR, GOOD)]
    assert f") | 60.0 (from training) | {errors[0]} |  | 40.0% | 100.0% | 30 | 5 |" in text
    assert f") | 50.0 | {errors[1]} | 90.0% | 40.0% | 100.0% | 30 | 5 |" in text
    assert text.count("| AlexNet | 1,234,567 |") == 2
    assert "| model.dropout | 0.0 | 0.5 |" in text
    assert "| dropout | accuracy | 2 | 50.0% | 1.20 | 2 | 50.0% | 1.20 | +0.0 |" in text
    assert f"| dropout | {GOOD.mean():.1%} | 90.0% | {abs(0.9 - GOOD.mean()):.3f} | 1.000 | 1.25 | 0.010 |" in text
    assert f"| {abs(0.9 - POOR.mean()):.3f} | 1.000 |  |  |" in text, "an older run"
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_the_picture_is_drawn(report: Path) -> None:
    with Image.open(report / "report.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


def test_runs_without_single_images_or_of_other_classes(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a/version_0", GOOD, images=False),
        make_run(
            tmp_path / "b/version_0", GOOD, data={"classes": ["x", "y", "z"], "identity": "y", "fingerprint": "z"}
        ),
    ]
    write_report(Comparison([Run(run) for run in runs]), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Not ranked" in page
    assert "Label noise" not in page
    assert "test accuracy by class" not in page


def test_a_shorter_run_keeps_its_last_values_in_the_slider(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a/version_0", GOOD),
        make_run(tmp_path / "b/version_0", GOOD, dropout=0.5, curves=SOUND),
    ]
    moments = Moments(Comparison([Run(run) for run in runs]).groups)
    left = [values["left"] for values in moments.values]
    assert [len(each) for each in left] == [len(CURVES), len(SOUND)]
    shown = [tile.until for run in moments.groups[1].runs for tile in moments.training_tiles(run) if not tile.right]
    assert {*shown} <= {moments.epochs}, "an image that was never learned stays unlearned"


def test_label_noise_has_a_chart(tmp_path: Path) -> None:
    noisy = Path(__file__).parents[2] / "lightning_logs/reference/label_noise/version_0"
    write_report(Comparison([Run(noisy)]), tmp_path)
    assert "<strong>Label noise</strong>" in (tmp_path / "report.html").read_text()


def test_runs_that_were_tested_on_other_images_share_no_picture(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name / "version_0", GOOD, dropout=dropout) for name, dropout in (("a", 0.0), ("b", 0.5))
    ]
    path = runs[1] / "images.npz"
    arrays = dict(np.load(path))
    other = arrays["test_labels"][::-1]  # another part of the test set, of the same size
    np.savez_compressed(path, **{**arrays, "test_labels": other, "test_predictions": (other + 1) % 3})
    moments = Moments(Comparison([Run(run) for run in runs]).groups)
    one, two = ({tile.picture for tile in moments.test_tiles(group.runs[0])} for group in moments.groups)
    assert one
    assert two
    assert not one & two
