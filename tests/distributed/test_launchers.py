import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only

from overfitting_lab.distributed.launchers import choose_environment, device_count
from tests.conftest import Flags, Script, scalars_of, summary_of

Variables = dict[str, str]
RUN = "lightning_logs/overfit/version_0"
NOTEBOOK = {  # on a cluster; SLURM sets the same in a batch script
    "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "jupyter", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
SRUN = {**NOTEBOOK, "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1"}  # fmt: skip
LSF = {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "missing", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_SIZE": "4",
       "JSM_NAMESPACE_RANK": "1"}  # fmt: skip
ELASTIC = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "1", "LOCAL_RANK": "1",
           "WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "4", "PMI_RANK": "1"}
KUBERNETES = {"KUBERNETES_PORT": "tcp://10.0.0.1:443", "MASTER_ADDR": "job-0", "MASTER_PORT": "x", "WORLD_SIZE": "2",
              "RANK": "1"}  # fmt: skip
STALE = {"RANK": "1", "LOCAL_RANK": "3", "NODE_RANK": "1", "WORLD_SIZE": "8", "PL_TRAINER_MAX_EPOCHS": "9"}


TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    rank_zero_only.rank = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("variables", [NOTEBOOK, SRUN, LSF, ELASTIC, MPI, KUBERNETES, STALE])
def test_one_device_needs_no_launcher(variables: Variables) -> None:
    os.environ.update(variables)
    rank_zero_only.rank = 1  # type: ignore[attr-defined]  # as Lightning's import sets it for RANK=1
    environment = choose_environment("cpu", 1, 1)
    assert type(environment) is LightningEnvironment
    assert (environment.global_rank(), environment.local_rank(), environment.world_size()) == (0, 0, 1)
    assert rank_zero_only.rank == 0  # type: ignore[attr-defined]


def test_a_run_on_one_device_ignores_every_launcher(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_3.ckpt").write_text("the end of another run")
    os.environ.update({**MPI, **KUBERNETES, **LSF, **ELASTIC, **STALE, **NOTEBOOK, "GLOO_SOCKET_IFNAME": "eth9"})
    rank_zero_only.rank = 1  # type: ignore[attr-defined]
    outcome = run_script("fit", "--config=overfit", *quick)
    assert outcome.status == 0, outcome.err
    assert "test       accuracy" in outcome.out
    summary = summary_of(tmp_path / RUN)
    assert (summary["world_size"], summary["epochs"], summary["global_step"]) == (1, 2, 10)
    assert len(scalars_of(tmp_path / RUN / "train")["curves/loss"]) == 2


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0"),
        ({"RANK": "1", "GROUP_RANK": "0"}, "RANK=1 and GROUP_RANK=0"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
        (ELASTIC, "LOCAL_RANK=1"),
    ],
)
def test_variables_of_processes_that_nobody_started(
    run_script: Script, quick: Flags, tmp_path: Path, variables: Variables, named: str
) -> None:
    os.environ.update(variables)
    outcome = run_script("fit", "--config=overfit", *quick, *TWO)
    assert outcome.status == 2
    assert named in outcome.err
    assert "nobody started the others: unset" in outcome.err
    assert "Traceback" not in outcome.err
    assert [*tmp_path.iterdir()] == []


def test_nodes_without_a_launcher_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="nobody started the processes of the other nodes"):
        choose_environment("cpu", 2, 2)
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "1"})
    environment = choose_environment("cpu", 2, 2)
    assert not environment.creates_processes_externally
    assert environment.node_rank() == 1
    assert rank_zero_only.rank == 2  # type: ignore[attr-defined]


def test_torchrun_is_believed_while_it_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as agent:
        os.environ.update({**ELASTIC, "MASTER_PORT": str(agent.getsockname()[1])})
        assert isinstance(choose_environment("cpu", "2", 1), TorchElasticEnvironment)
        assert rank_zero_only.rank == 1  # type: ignore[attr-defined]
        os.environ["RANK"] = "0"
        with pytest.raises(MisconfigurationException, match="torchrun started 2 processes, but the command asks for 1"):
            choose_environment("cpu", 1, 1)
        with pytest.raises(MisconfigurationException, match="for 4"):
            choose_environment("cpu", 2, 2)


def test_srun_is_believed_in_its_steps() -> None:
    os.environ.update(NOTEBOOK)
    assert type(choose_environment("cpu", 4, 1)) is LightningEnvironment  # which starts all four
    os.environ.update(SRUN)
    environment = choose_environment("cpu", 2, 1)
    assert isinstance(environment, SLURMEnvironment)
    assert (environment.global_rank(), environment.world_size(), environment.auto_requeue) == (1, 2, False)
    assert not SLURMEnvironment.detect()  # else Lightning resumes from hpc_ckpt_N.ckpt
    os.environ.update({**SRUN, "SLURM_PROCID": "0"})
    with pytest.raises(MisconfigurationException, match="srun started 2 processes, but the command asks for 3"):
        choose_environment("cpu", 3, 1)


@pytest.mark.parametrize("name", ["interactive", "bash"])  # of a job of salloc, and of srun bash
def test_a_shell_of_srun_is_told_by_its_terminal(name: str) -> None:
    os.environ.update({**SRUN, "SLURM_JOB_NAME": name})
    standard_input = os.dup(0)
    _, terminal = os.openpty()
    try:
        os.dup2(terminal, 0)
        assert type(choose_environment("cpu", 2, 1)) is LightningEnvironment
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        assert isinstance(choose_environment("cpu", 2, 1), SLURMEnvironment)
    finally:
        os.dup2(standard_input, 0)


def test_steps_of_one_job_meet_at_places_of_their_own() -> None:
    places = []
    for step, nodes in ("0", "node[1-2]"), ("1", "node[3-4]"), ("2", "node[3-4]"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            step_of = {"SLURM_STEP_ID": step, "SLURM_STEP_NODELIST": nodes, "SLURM_NODELIST": "node[1-4]"}
            for variable, value in {**SRUN, **step_of}.items():
                monkeypatch.setenv(variable, value)
            environment = choose_environment("cpu", 2, 1)
            places.append((environment.main_address, environment.main_port))
            for variable in ("MASTER_ADDR", "MASTER_PORT"):
                del os.environ[variable]
    assert [address for address, _ in places] == ["node1", "node3", "node3"]
    assert len(set(places)) == 3
    assert places[0][1] == 16234  # as Lightning's: 15000 and the job's last four digits


def test_variables_of_jsrun_that_cannot_be_used() -> None:
    os.environ.update(LSF)
    with pytest.raises(MisconfigurationException, match=r"the variables of jsrun cannot be used: .*missing"):
        choose_environment("cpu", 4, 1)


def test_processes_started_by_hand() -> None:
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": "3", "WORLD_SIZE": "4"})
    environment = choose_environment("cpu", 2, 2)
    assert environment.creates_processes_externally
    assert (environment.node_rank(), environment.local_rank()) == (1, 1)
    assert rank_zero_only.rank == 3  # type: ignore[attr-defined]
    os.environ["RANK"] = "0"
    with pytest.raises(MisconfigurationException, match="started 4 processes, but the command asks for 2"):
        choose_environment("cpu", 2, 1)
    os.environ["WORLD_SIZE"] = "four"
    with pytest.raises(MisconfigurationException, match="WORLD_SIZE=four, which is not a number"):
        choose_environment("cpu", 2, 2)


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), ("auto", 1), (-1, 1), ("2", 2), ("0,", 1), ("0,1", 2), ([0, 3], 2), ("two", 1)]
)
def test_number_of_devices(devices: object, number: int) -> None:
    assert device_count("cpu", devices) == number
