"""Values of the searched settings, drawn for each trial of a search."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

DIGITS = 4  # of a searched number; more would only make it hard to read


def draw(study: optuna.Study, trial: optuna.Trial, searches: Mapping[str, BaseDistribution], seed: int) -> list[str]:
    """Return the flags of a trial: its value of each searched setting, drawn if it has none.

    The values are a function of the seed, the trial's number and the trials that have finished.
    """
    own = np.random.SeedSequence([seed, trial.number]).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Weights and rates act together, so the sampler models them together. It counts the trials of other workers
        # that still train as bad ones, so that it draws other values.
        study.sampler = optuna.samplers.TPESampler(seed=int(own), multivariate=True, constant_liar=True)
    return [f"--{key}={_suggest(trial, key, values)}" for key, values in searches.items()]


def _suggest(trial: optuna.Trial, key: str, values: BaseDistribution) -> Any:
    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(key, values.choices)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, log=values.log)
    assert isinstance(values, FloatDistribution)
    return f"{trial.suggest_float(key, values.low, values.high, log=values.log):.{DIGITS}g}"
