import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from overfitting_lab.runs import Run
from overfitting_lab.runs.calibration import at_temperature, best_temperature, calibration
from tests.conftest import ROOT

REFERENCE = {  # mean confidence and expected calibration error of the tested networks
    "overfit": (0.691, 0.266),
    "long_no_remedy": (0.814, 0.389),
    "long_all_remedies": (0.838, 0.351),
    "images_45000": (0.924, 0.219),
    "regularized": (0.839, 0.024),
    "vgg16_32": (0.822, 0.034),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_runs_have_their_calibration(name: str) -> None:
    run = Run(ROOT / "lightning_logs" / "reference" / name / "version_0")
    assert run.test_probabilities is not None
    found = calibration(run.test_probabilities, run.images["test_labels"])
    assert (found.confidence, found.error) == pytest.approx(REFERENCE[name], abs=5e-4)


def test_the_bins_add_up_to_the_error() -> None:
    random = np.random.default_rng(0)
    probabilities = at_temperature(random.normal(size=(500, 4)), 0.3)
    probabilities[:3] = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.4, 0.4, 0.1, 0.1]])  # on the edges of bins
    labels = random.integers(0, 4, 500)
    found = calibration(probabilities, labels)
    assert found.counts.sum() == 500
    assert np.isnan(found.accuracies[:3]).all(), "no largest of four probabilities is below a quarter"
    error = np.nansum(found.counts * abs(found.accuracies - found.confidences)) / 500
    assert found.error == pytest.approx(error, abs=1e-6)
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 4, n_bins=15)
    assert found.error == pytest.approx(float(theirs), abs=1e-6)


def test_a_bin_holds_its_upper_end() -> None:
    """A probability of 1 shares the bin of 0.95, whose accuracy is that of both together."""
    probabilities = np.array([[1, 0]] * 500 + [[0.95, 0.05]] * 500)
    labels = np.array([0] * 450 + [1] * 50 + [0] * 500)
    assert calibration(probabilities, labels).error == pytest.approx(0.975 - 0.95)


def test_a_sure_network_that_is_always_right_has_no_error() -> None:
    found = calibration(np.eye(3, dtype=np.float16), np.arange(3))
    assert (found.confidence, found.error, found.counts[-1]) == (1, 0, 3)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_the_best_temperature_is_the_one_that_made_the_labels(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5))
    labels = (at_temperature(logits, temperature).cumsum(axis=1) < random.random((20_000, 1))).sum(axis=1)
    found = best_temperature(logits, labels)
    assert found is not None
    assert found == pytest.approx(temperature, rel=0.1)

    def loss(at: float) -> float:
        return float(cross_entropy(torch.tensor(logits) / at, torch.tensor(labels)))

    assert loss(found) <= min(loss(0.99 * found), loss(1.01 * found))


def test_answers_that_are_all_right_or_all_wrong_have_no_best_temperature() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 5))
    assert best_temperature(logits, logits.argmax(axis=1)) is None
    assert best_temperature(logits, logits.argmin(axis=1)) is None
