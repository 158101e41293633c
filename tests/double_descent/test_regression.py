from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import CIFAR10DataModule
from overfitting_lab.double_descent import regression
from overfitting_lab.double_descent.regression import Point, measure, solve

Data = Callable[..., CIFAR10DataModule]


@pytest.fixture
def data(image_folder: Path) -> Data:
    def build(**settings: Any) -> CIFAR10DataModule:
        settings = {"train_size": 40, "val_size": 1, "label_noise": 0.3, "image_size": 8, "batch_size": 1} | settings
        module = CIFAR10DataModule(str(image_folder), "folder", split="overfit", **settings)
        module.prepare_data()
        module.setup("fit")
        return module

    return build


def curve(points: list[Point], noise: float, ridge: float) -> dict[int, Point]:
    return {point.features: point for point in points if (point.label_noise, point.ridge) == (noise, ridge)}


@pytest.mark.parametrize("features", [7, 12, 30])
def test_weights_are_the_shortest_least_squares_and_the_ridge_regression(features: int) -> None:
    random = torch.Generator().manual_seed(0)
    values, targets = (torch.randn(rows, 12, generator=random, dtype=torch.float64) for rows in (features, 3))
    shortest, ridge = solve(values, targets.T, (0.0, 0.5))
    # LAPACK's gelsd is another implementation of the minimum norm; the normal equations give the ridge.
    expected, *_ = np.linalg.lstsq(values.T.numpy(), targets.T.numpy(), rcond=None)
    np.testing.assert_allclose(shortest, expected, rtol=1e-8)
    penalty = 0.5 * torch.eye(features, dtype=torch.float64)
    torch.testing.assert_close((values @ values.T + penalty) @ ridge, values @ targets.T)


def test_images_that_are_there_twice_or_black_leave_the_weights_finite() -> None:
    values = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 3:] = values[:, :3]
    targets = torch.eye(6, dtype=torch.float64)
    (weights,) = solve(values, targets, [0.0])
    assert weights.abs().max() < 10
    torch.testing.assert_close(values.T @ weights, (targets + targets.roll(3, 0)) / 2)  # the mean of both labels
    (weights,) = solve(torch.zeros(4, 6, dtype=torch.float64), targets, [0.0])
    assert torch.equal(weights, torch.zeros_like(weights))


def test_some_of_the_test_images_are_tested(data: Data) -> None:
    module = data(test_size=9)
    for point in measure(module, 0, ridge=1.0):
        assert point.test_acc * 9 == pytest.approx(round(point.test_acc * 9))


def test_the_error_peaks_at_as_many_features_as_images_and_a_ridge_removes_the_peak(data: Data) -> None:
    seeds = [list(measure(data(), seed, ridge=1.0)) for seed in range(3)]
    for points in seeds:
        assert [size for size, _ in groupby(point.features for point in points)] == regression.sizes(40)
        for noise in (0.0, 0.3):
            ridgeless, ridged = curve(points, noise, 0.0), curve(points, noise, 1.0)
            for size, point in ridgeless.items():
                assert (point.train_error < 1e-9) == (size >= 40)
                assert ridged[size].train_error > point.train_error
            assert all(point.train_acc == 1 for size, point in ridgeless.items() if size >= 40)
            assert max(point.test_error for point in ridged.values()) < 1.5
    for noise in (0.0, 0.3):
        curves = [curve(points, noise, 0.0) for points in seeds]
        medians = {size: np.median([each[size].test_error for each in curves]) for size in curves[0]}
        assert 36 <= max(medians, key=medians.__getitem__) <= 44
        assert medians[40] > 10 * max(medians[2], medians[400])


def test_training_is_judged_by_the_labels_that_were_drawn_and_the_test_by_true_ones(data: Data) -> None:
    module = data(label_noise=1.0)
    wrong = (module.true_labels != module.images.train_labels)[module.train_indices]
    assert wrong.any()
    points = list(measure(module, 0, ridge=1e-6))
    drawn, true = curve(points, 1.0, 0.0)[400], curve(points, 0.0, 0.0)[400]
    assert drawn.train_acc == true.train_acc == 1
    assert true.test_acc > 0.9  # the classes differ in brightness
    assert drawn.test_acc < 0.7


def test_a_seed_draws_the_same_features_however_many_images_are_in_memory(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = (list(measure(data(), seed, ridge=1.0)) for seed in (0, 1))
    monkeypatch.setattr(regression, "CHUNK", 7)
    again = list(measure(data(), 0, ridge=1.0))
    assert [point.test_error for point in again] == pytest.approx([point.test_error for point in first], rel=1e-6)
    assert [point.test_error for point in other] != pytest.approx([point.test_error for point in first], rel=1e-2)


def test_without_label_noise_there_is_one_pair_of_curves(data: Data) -> None:
    points = list(measure(data(label_noise=0.0), 0, ridge=0.5))
    assert {(point.label_noise, point.ridge) for point in points} == {(0.0, 0.0), (0.0, 0.5)}
    assert len(points) == 2 * len(regression.sizes(40))
