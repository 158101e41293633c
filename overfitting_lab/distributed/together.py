"""The strategy of several processes: if one fails, all end, with one message about the cause."""

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.summary import RunSummary
from overfitting_lab.distributed.last_words import CAUSE, FOLLOWS, last_words
from overfitting_lab.distributed.launchers import PARENT, parent
from overfitting_lab.distributed.meeting import (
    PATIENCE,
    ProcessError,
    check_meeting_point,
    choose_interface,
    notice_gone_machines,
    refused_port,
)
from overfitting_lab.runs.files import resume_command

SAVING_PATIENCE = timedelta(days=1)  # while the first process writes files, perhaps to a slow disk
SAVED, COMPLETED = "Trainer.save_checkpoint", "completed"  # barriers: Lightning's after a checkpoint; after all files
# Words in the errors of gloo: all name its source file, except that of a host that does not answer.
GLOO_WORDS = ("gloo", "caused pair closure")
CLEANUP = 5  # seconds in which a process may end by itself


class TogetherStrategy(DDPStrategy):
    """DDP whose processes end together if one of them fails.

    A process must answer the others within ``timeout``, when they meet and whenever they exchange gradients.
    """

    def __init__(self, *, timeout: timedelta = PATIENCE, **settings: Any) -> None:
        super().__init__(timeout=timeout, **settings)
        self._patience = timeout
        self._saving: Any = None  # a group of the same processes that waits longer

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = TogetherLauncher(self.cluster_environment, self.num_processes, self.num_nodes, self._patience)

    def setup_distributed(self) -> None:
        """Meet the other processes."""
        super().setup_distributed()
        if self._saving is None:
            self._saving = torch.distributed.new_group(backend="gloo", timeout=SAVING_PATIENCE)
            if self.num_nodes > 1:
                notice_gone_machines()

    def barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Wait for the other processes, and wait longer if the first one may still write files."""
        if name in (SAVED, COMPLETED) and self._saving is not None:
            torch.distributed.barrier(group=self._saving)
        else:
            super().barrier(name, *args, **kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Reduce the counts of callbacks. Wait before that until the first process has written its files."""
        self.barrier(COMPLETED)
        return super().reduce(*args, **kwargs)


class TogetherLauncher(_SubprocessScriptLauncher):
    """Start the other processes unless another program did, watch them, and name the one that fails."""

    def __init__(
        self, environment: ClusterEnvironment, num_processes: int, num_nodes: int, patience: timedelta
    ) -> None:
        super().__init__(environment, num_processes, num_nodes)
        self._patience = int(patience.total_seconds())
        self._ending = threading.Event()
        self._last_words = Path()
        self._trainer: Trainer | None = None

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in all processes.

        Raises:
            ProcessError: if the processes cannot meet, or if one fails.
        """
        self._trainer = kwargs.get("trainer")
        with self.named_causes():
            if not torch.distributed.is_initialized():
                check_meeting_point(self.cluster_environment, self.num_nodes)
                if self.num_nodes > 1:
                    choose_interface(self.cluster_environment.main_address)
            if not self.cluster_environment.creates_processes_externally:
                self._start_others()  # this sets LOCAL_RANK, so that Lightning starts none itself
            result = super().launch(function, *args, **kwargs)
            if self._trainer is not None:
                self._trainer.strategy.barrier(COMPLETED)
            return result

    @contextmanager
    def named_causes(self) -> Iterator[None]:
        """Turn an error that another process caused into a ``ProcessError``."""
        try:
            yield
        except RuntimeError as error:
            self._ending.set()
            if isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in GLOO_WORDS):
                raise ProcessError(self._cause(str(error)) + self._remedy()) from error
            raise
        except BaseException:
            self._ending.set()
            raise

    def _start_others(self) -> None:
        self._last_words = Path(tempfile.mkdtemp(prefix="overfitting-lab-"))
        os.environ[PARENT] = f"{os.getpid()}:{self._last_words}"
        try:
            self._call_children_scripts()
        finally:
            del os.environ[PARENT]
        atexit.register(self._end_others)
        threading.Thread(target=self._watch_others, daemon=True).start()

    def _watch_others(self) -> None:
        """End this process if another one failed and this one does not notice it."""
        while not any(process.poll() for process in self.procs):
            if self._ending.wait(0.2):
                return
        ended = [rank for rank, process in enumerate(self.procs, start=1) if process.poll()]
        hangs = all(self._words(rank, FOLLOWS) for rank in ended)  # this one: the others waited in vain
        if self._ending.wait(self._patience / 2 if torch.distributed.is_initialized() and not hangs else 1):
            return
        error = ProcessError(self._failed() + self._remedy())
        recorder = threading.Thread(target=self._record, args=(error,), daemon=True)  # a GPU may block it
        recorder.start()
        recorder.join(CLEANUP)
        print(f"error: {error}", file=sys.stderr, flush=True)
        self._end_others()
        os._exit(1)

    def _record(self, error: ProcessError) -> None:
        assert self._trainer is not None
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunSummary):
                callback.on_exception(self._trainer, self._trainer.lightning_module, error)

    def _end_others(self) -> None:
        self._ending.set()
        deadline = time.monotonic() + CLEANUP
        while any(process.poll() is None for process in self.procs) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in self.procs:
            process.kill()
        shutil.rmtree(self._last_words, ignore_errors=True)

    def _cause(self, error: str) -> str:
        if "EADDRINUSE" in error:
            return refused_port(self.cluster_environment.main_port, "Address already in use")
        deadline = time.monotonic() + CLEANUP
        while self.procs and time.monotonic() < deadline:
            if failed := self._failed():
                return failed
            time.sleep(0.1)
        environment = self.cluster_environment
        place = f"MASTER_ADDR:MASTER_PORT = {environment.main_address}:{environment.main_port}"
        if self.procs:
            return f"another process does not answer: it hangs, or is more than {self._patience} s behind"
        if "connectFullMesh" in error:
            return (
                f"the processes met at {place}, but cannot reach each other. Set GLOO_SOCKET_IFNAME on each machine to "
                "the network interface that leads to the others, and see that no firewall is between them"
            )
        if met := re.search(r"(\d+)/(\d+) clients joined", error):
            came = f"only {met[1]} of {met[2]} processes reached {place} within {self._patience} s"
            return f"{came}. Did you start the others?"
        if "client socket" in error or "connect to" in error:
            return f"the first process does not answer at {place}. Did you start it, and can this machine reach it?"
        if re.search("time(d)? ?out", error, re.IGNORECASE):
            return f"another process does not answer: it hangs, or is more than {self._patience} s behind"
        hint = "; torchrun says which one" if isinstance(environment, TorchElasticEnvironment) else ""
        reason = error.partition("\n")[0]
        return f"another process of this run is gone{hint} ({reason})"

    def _remedy(self) -> str:
        if self._trainer is None or self._trainer.global_step == 0 or parent() is not None:
            return ""
        folder = next((logger.folder for logger in self._trainer.loggers if isinstance(logger, RunLogger)), None)
        return f"; resume with: {resume_command(folder)}" if folder else ""

    def _failed(self) -> str:
        """Return a sentence that names the failed process, its end and its message; empty if all others still run."""
        ended = [(rank, process) for rank, process in enumerate(self.procs, start=1) if process.poll() is not None]
        for rank, process in ended:
            if not self._words(rank, FOLLOWS):
                how = f"ended with exit status {process.returncode}"
                if process.returncode < 0:
                    how = f"was ended by {signal.Signals(-process.returncode).name}"
                words = self._words(rank, CAUSE) or ("its message is above" if process.returncode > 0 else "")
                return f"process {rank} of {len(self.procs) + 1} {how}" + f": {words}" * bool(words)
        return self._words(ended[0][0], FOLLOWS) if ended else ""

    def _words(self, rank: int, kind: str) -> str:
        return last_words(self._last_words, rank, kind)


def use_together_strategy() -> None:
    """Register ``TogetherStrategy`` under the Trainer's names of DDP strategies, such as ``ddp``."""
    for name, entry in list(StrategyRegistry.items()):
        if entry["strategy"] is DDPStrategy and entry["init_params"].get("start_method") == "popen":
            StrategyRegistry.register(
                name, TogetherStrategy, entry["description"], override=True, **entry["init_params"]
            )


def leave_together(strategy: Strategy) -> None:
    """Wait for all processes and end their group, so that no process exits while another still waits for it."""
    if torch.distributed.is_initialized():
        launcher = strategy.launcher
        with launcher.named_causes() if isinstance(launcher, TogetherLauncher) else nullcontext():
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end_with_parent() -> None:
    """End this process as soon as its parent is gone, if the parent is the run's first process or torchrun."""
    starter = os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(1)
        os._exit(1)

    if parent() is not None or "TORCHELASTIC_RUN_ID" in os.environ:  # stale ones have been removed
        threading.Thread(target=watch, daemon=True).start()
