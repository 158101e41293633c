"""Several processes of one run: they meet within a minute. If one fails, all end, with one message about the cause."""

import atexit
import errno
import os
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from overfitting_lab.cli.launchers import FIRST_SPEAKS, PARENT, parent
from overfitting_lab.runs.files import resume_command
from overfitting_lab.runs.text import ESCAPE, escaped

if sys.platform == "linux":
    import fcntl

PATIENCE = timedelta(seconds=45)  # longest time in which a process must answer the others
SAVING_PATIENCE = timedelta(days=1)  # while the first process writes files, perhaps to a slow disk
SAVED, COMPLETED = "Trainer.save_checkpoint", "completed"  # barriers: Lightning's after a checkpoint; after all files
OF_GLOO = (
    "gloo",
    "caused pair closure",
)  # all its errors name its source file, except the second, of a host that does not answer
CLEANUP = 5  # seconds in which a process may end by itself
# Files with the last message of a process: of one that failed, and of one that failed because of another.
CAUSE, FOLLOWS = ".cause", ".follows"


class ProcessError(Exception):
    """The processes of a run cannot meet, or one of them is gone or does not answer. The message names the cause."""


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
            if isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in OF_GLOO):
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
            return _refused(self.cluster_environment.main_port, "Address already in use")
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
        path = self._last_words / f"{rank}{kind}"
        return path.read_text(encoding="utf-8").removeprefix("error: ") if path.is_file() else ""


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


def say(message: str) -> None:
    """Print the last message of this process, or leave it to the first process if that one started this process."""
    message = escaped(message, keep="\n\t")
    if starter := parent():
        kind = FOLLOWS if isinstance(sys.exc_info()[1], ProcessError) else CAUSE
        with suppress(OSError):  # the first process has ended
            Path(starter[1], os.environ["LOCAL_RANK"] + kind).write_text(message, encoding="utf-8", errors=ESCAPE)
        return
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(FIRST_SPEAKS)
    print(message, file=sys.stderr, flush=True)


def check_meeting_point(environment: ClusterEnvironment, num_nodes: int) -> None:
    """Check that this process can meet the others where the environment says.

    Raises:
        ProcessError: with the variable that is wrong and its value.
    """
    there = [name for _, name in socket.if_nameindex()]
    for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(","):
        if name and name not in there:
            raise ProcessError(
                f"GLOO_SOCKET_IFNAME={name} is not a network interface of this machine, which has {', '.join(there)}: "
                "name one of these, or unset it"
            )
    text = os.environ.get("MASTER_PORT", "1")
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise ProcessError(f"MASTER_PORT={text} is not a port: set it to a number from 1 to 65535, or unset it")
    address, port = environment.main_address, environment.main_port
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise ProcessError(
            f"MASTER_ADDR={address} cannot be resolved: set it to the name or address of the first process's machine, "
            "or unset it on a single machine"
        ) from None
    if isinstance(environment, TorchElasticEnvironment) or environment.global_rank() != 0:
        return  # another process is the server
    dual = socket.has_dualstack_ipv6()
    try:
        if num_nodes == 1:
            socket.create_server((address, 0), family=family).close()
        place = ("", port)  # all addresses, as torch's server
        socket.create_server(place, family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual).close()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL and num_nodes == 1:
            raise ProcessError(f"MASTER_ADDR={address} is not an address of this machine: unset it") from None
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ProcessError(_refused(port, os.strerror(error.errno))) from None


def choose_interface(address: str) -> None:
    """Have gloo use the network interface that leads to the first process's address, unless the user chose one.

    Gloo itself uses the interface to which this machine's name belongs. Debian gives its name to loopback, where no
    other machine can reach it.
    """
    if sys.platform != "linux" or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):  # the name may be unknown
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # a network without IPv4
        probe.connect((address, 9))  # this sends nothing
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                if answer[20:24] == own:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return


def notice_gone_machines() -> None:
    """Let the system end each of this process's connections to a machine that does not answer for 30 seconds.

    So a wait for a machine that was cut off ends, however long a machine that is there may take.
    """
    if sys.platform != "linux":
        return
    for name in [path.name for path in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError), socket.fromfd(int(name), socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000
            )  # fails for what is no connection
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _refused(port: int, reason: str) -> str:
    return f"the processes cannot meet at MASTER_PORT={port}: {reason}. Set it to a free port, or unset it"
