"""A decision of the first process that all processes of a run take over before their group exists."""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only

from overfitting_lab.distributed.launchers import parent
from overfitting_lab.distributed.meeting import PATIENCE, ProcessError, check_meeting_point

DECISION = "OVERFITTING_LAB_DECISION"  # for the processes that the first process will start
FAILED = "failed"
DECIDING = timedelta(days=7)  # the first process may wait for another run


def decided_by_first(
    environment: ClusterEnvironment, num_processes: int, num_nodes: int, decide: Callable[[], str]
) -> str:
    """Return in every process what ``decide`` returns in the first one.

    Args:
        environment: tells where the processes meet.
        num_processes: number of the run's processes on all nodes.
        num_nodes: number of nodes.
        decide: runs in the first process alone. If it fails, the other processes exit without a message.

    Raises:
        ProcessError: if the processes cannot meet.
    """
    if parent() is not None:
        return os.environ[DECISION]
    meeting = num_processes if environment.creates_processes_externally else num_nodes
    os.environ[DECISION] = decide() if meeting == 1 else _met(environment, meeting, num_nodes, decide)
    return os.environ[DECISION]


def _met(environment: ClusterEnvironment, number: int, num_nodes: int, decide: Callable[[], str]) -> str:
    """Share the decision through a store at the address where the group will meet, and close the store."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    environment.set_global_rank(rank)  # as a strategy will do
    check_meeting_point(environment, num_nodes)
    address, port = environment.main_address, environment.main_port
    place = f"MASTER_ADDR:MASTER_PORT = {address}:{port}"
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    stores: Any = torch.distributed
    try:
        server = stores.TCPStore(address, port, is_master=rank == 0 and not by_torchrun, timeout=PATIENCE)
        store = stores.PrefixStore(f"decision/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", server)
        if rank == 0:
            return _tell(store, number, place, decide)
        store.set_timeout(DECIDING)
        decision: str = store.get("decision").decode()
        store.add("known", 1)
    except torch.distributed.DistError as error:
        reason = str(error).partition("\n")[0]
        raise ProcessError(f"the first process does not answer at {place}. Did you start it? ({reason})") from error
    if decision == FAILED:
        sys.exit(1)
    return decision


def _tell(store: Any, number: int, place: str, decide: Callable[[], str]) -> str:
    """Decide, tell the other processes, and wait until all of them know."""
    decision = FAILED
    try:
        decision = decide()
    finally:
        store.set("decision", decision)
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while (known := 1 + store.add("known", 0)) < number and time.monotonic() < deadline:
            time.sleep(0.05)
    if known < number:
        patience = int(PATIENCE.total_seconds())
        raise ProcessError(
            f"only {known} of {number} processes reached {place} within {patience} s. Did you start the others?"
        )
    return decision
