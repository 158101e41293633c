import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from overfitting_lab.distributed.meeting import PATIENCE, ProcessError
from overfitting_lab.distributed.together import TogetherLauncher


@pytest.mark.parametrize(
    "error",
    [
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 45000ms for recv operation",
        "Application timeout caused pair closure",  # of a host that was unplugged within the backward pass
    ],
)
def test_gloos_timeout_is_another_process_that_does_not_answer(error: str) -> None:
    launcher = TogetherLauncher(LightningEnvironment(), 1, 2, PATIENCE)
    words = "another process does not answer: it hangs, or is more than 45 s behind"
    with pytest.raises(ProcessError, match=words), launcher.named_causes():
        raise RuntimeError(error)


def test_another_error_stays_as_it_is() -> None:
    launcher = TogetherLauncher(LightningEnvironment(), 1, 2, PATIENCE)
    with pytest.raises(RuntimeError, match="shapes"), launcher.named_causes():
        raise RuntimeError("shapes do not fit")
