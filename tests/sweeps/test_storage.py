import optuna
import pytest

from overfitting_lab.runs import UsageError
from overfitting_lab.sweeps.storage import keep_to


def test_a_study_keeps_to_its_first_plan() -> None:
    study = optuna.create_study()
    keep_to(study, "plan", {"model.dropout": 0.5, "data.mixup": (0, 1)}, "the search was")
    keep_to(study, "plan", {"model.dropout": 0.5, "data.mixup": [0, 1]}, "the search was")
    said = r"^the search was begun with other settings \(data.cutout, model.dropout\); give these again, or keep "
    with pytest.raises(UsageError, match=said):
        keep_to(study, "plan", {"model.dropout": 0.2, "data.mixup": [0, 1], "data.cutout": 8}, "the search was")


def test_a_class_that_has_moved_since_is_the_same() -> None:
    study = optuna.create_study()
    study.set_user_attr("plan", {"trainer.callbacks": [{"class_path": "callbacks.plateau.StopAfterPlateaus"}]})
    moved = [{"class_path": "overfitting_lab.callbacks.plateau.PlateauSchedule"}]
    keep_to(study, "plan", {"trainer.callbacks": moved}, "the search was")
