"""Find out which program started this process, and ignore stale variables of other launchers.

Lightning detects torchrun, SLURM, LSF and its own processes by environment variables alone. Such variables are also set
in a notebook on a cluster, in a batch script, and in any program that a launcher started. With one device, they are
ignored here. With several, the launcher must have started as many processes as the command asks for.
"""

import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only

# Set in the processes that the first process starts: its process id, and a folder for their last messages.
PARENT = "OVERFITTING_LAB_PARENT"
RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK")
MEETING = ("MASTER_ADDR", "MASTER_PORT")
# Seconds for which the others wait before they exit, so that the first process can report an error that all have.
# torchrun ends all processes when one exits.
FIRST_SPEAKS = 3
ELASTIC = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")


class Launcher(NamedTuple):
    """A program that started this process as one of several."""

    name: str
    processes: int
    rank: int
    environment: Callable[[], ClusterEnvironment]


def choose_environment(accelerator: object, devices: object, num_nodes: int) -> ClusterEnvironment:
    """Return Lightning's view of the processes for the Trainer's flags, and silence all processes but the first.

    Raises:
        MisconfigurationException: if the environment names processes that nobody started, or another number of them.
    """
    local = device_count(accelerator, devices)
    wanted = local * num_nodes
    started_by_srun = _is_srun_step()
    if "SLURM_NTASKS" in os.environ:
        # A documented switch of Lightning. Without it, a new run would resume from another run's hpc_ckpt_N.ckpt.
        os.environ["SLURM_JOB_NAME"] = "interactive"
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    launcher = _launcher(started_by_srun, local, wanted)
    if wanted == 1 and launcher is None:
        for name in (*RANKS, *MEETING, *ELASTIC, "WORLD_SIZE"):
            os.environ.pop(name, None)
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        return LightningEnvironment()
    if launcher is None:
        for name in ELASTIC:
            os.environ.pop(name, None)
        rank_zero_only.rank = local * _launching_node(wanted, num_nodes)  # type: ignore[attr-defined]
        return LightningEnvironment()
    rank_zero_only.rank = launcher.rank  # type: ignore[attr-defined]
    if launcher.processes != wanted:
        if launcher.rank > 0:
            time.sleep(FIRST_SPEAKS)
            sys.exit(2)
        raise MisconfigurationException(
            f"{launcher.name} started {_processes(launcher.processes)}, but the command asks for {wanted} "
            f"(--trainer.devices {local}, --trainer.num_nodes {num_nodes}): both numbers must be equal"
        )
    try:
        return launcher.environment()
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        raise MisconfigurationException(
            f"the variables of {launcher.name} cannot be used: {type(error).__name__}: {error}"
        ) from error


def device_count(accelerator: object, devices: object) -> int:
    """Return how many devices of this machine the Trainer's flags select; 1 for a value that the Trainer refuses."""
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    if isinstance(devices, str):
        parts = [part for part in devices.split(",") if part.strip()]
        devices = parts if "," in devices else int(devices) if devices.isdecimal() else 1
    return max(1, len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1)


def parent() -> tuple[int, str] | None:
    """Return the process id of the first process and its folder for last messages, if it started this process."""
    number, _, folder = os.environ.get(PARENT, "").partition(":")
    return (int(number), folder) if number.isdecimal() and int(number) == os.getppid() else None


def _launcher(started_by_srun: bool, local: int, wanted: int) -> Launcher | None:
    """Return the launcher that started this process; ``None`` if nobody did, or if its variables are stale."""
    if parent() is not None:
        # After a test, Lightning deletes WORLD_SIZE; the next one has the same processes.
        return Launcher("the first process", _number("WORLD_SIZE", wanted), _number("LOCAL_RANK"), LightningEnvironment)
    if _is_torchrun_alive():
        return Launcher("torchrun", _number("WORLD_SIZE"), _number("RANK"), TorchElasticEnvironment)
    if wanted == 1:
        return None
    if started_by_srun:
        tasks = _number("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS")
        if tasks > 1:
            os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(local))  # Lightning requires it
            _set_meeting_point_of_step()
            return Launcher("srun", tasks, _number("SLURM_PROCID"), lambda: SLURMEnvironment(auto_requeue=False))
    if LSFEnvironment.detect() and (tasks := _number("JSM_NAMESPACE_SIZE")) > 1:
        return Launcher("jsrun", tasks, _number("JSM_NAMESPACE_RANK"), LSFEnvironment)
    if MPIEnvironment.detect():
        mpi = MPIEnvironment()
        return Launcher("mpirun", mpi.world_size(), mpi.global_rank(), lambda: mpi)
    return _by_hand(local, wanted)


def _is_torchrun_alive() -> bool:
    """Tell if torchrun's variables are complete and torchrun answers at the address that they name."""
    if not all(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", *MEETING)):
        return False
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False":
        return True  # the first process answers there, not torchrun
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], _number("MASTER_PORT")), timeout=10).close()
    except (OSError, OverflowError):
        return False
    return True


def _is_srun_step() -> bool:
    """Tell if srun started this process. SLURM's other variables are also set in a batch script or a notebook.

    A shell of ``srun --pty`` is a step as well. But the name alone does not tell it: each job of ``salloc`` is called
    interactive, and ``srun bash`` makes a job bash.
    """
    in_shell = SLURMEnvironment.job_name() in ("bash", "interactive") and os.isatty(0)
    return not in_shell and ("SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ)


def _set_meeting_point_of_step() -> None:
    """Choose address and port for srun's step. Lightning chooses the job's, which may have several steps at once."""
    if nodes := os.environ.get("SLURM_STEP_NODELIST"):
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    if "SLURM_JOB_ID" in os.environ and (step := _number("SLURM_STEP_ID", default=0)):
        os.environ.setdefault("MASTER_PORT", str(15000 + (_number("SLURM_JOB_ID") + 97 * step) % 10000))


def _by_hand(local: int, wanted: int) -> Launcher | None:
    """Return the launcher of processes that a person or Kubeflow started with torch's or Lightning's variables."""
    if not all(name in os.environ for name in MEETING) or not {"RANK", "LOCAL_RANK"} & os.environ.keys():
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return None  # torchrun set them, and is gone
    if "RANK" in os.environ:
        rank = _number("RANK")
        os.environ.setdefault("LOCAL_RANK", str(rank % local))
        os.environ.setdefault("NODE_RANK", str(rank // local))
    else:
        rank = _node_rank() * local + _number("LOCAL_RANK")
    processes = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else wanted
    return Launcher("the program that set MASTER_ADDR", processes, rank, LightningEnvironment)


def _launching_node(wanted: int, num_nodes: int) -> int:
    """Return the rank of this node, on which Lightning is to start the processes.

    Raises:
        MisconfigurationException: if variables say that another program started them, or lack the other nodes' address.
    """
    if num_nodes > 1:
        if not all(name in os.environ for name in MEETING) or not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
            raise MisconfigurationException(
                f"--trainer.num_nodes {num_nodes}: nobody started the processes of the other nodes. Start the command "
                "with torchrun or srun, or on each node with MASTER_ADDR, MASTER_PORT and NODE_RANK"
            )
        return _node_rank()
    if stale := [name for name in RANKS if name in os.environ]:
        values = " and ".join(f"{name}={os.environ[name]}" for name in stale)
        raise MisconfigurationException(
            f"the environment has {values}, as if another program had started {_processes(wanted)}, but nobody started "
            f"the others: unset {' '.join(stale)}, or start the command with torchrun"
        )
    return 0


def _node_rank() -> int:
    return _number("NODE_RANK" if "NODE_RANK" in os.environ else "GROUP_RANK", default=0)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise MisconfigurationException(
            f"the environment has {name}={text}, which is not a number: unset it or correct it"
        )
    return int(text)


def _processes(number: int) -> str:
    return f"{number} processes" if number != 1 else "1 process"
