"""python -m tests.slurm COMMAND ...

Start SLURM on this machine with a controller and two nodes, run a command within it, and end all of it. Needs Debian's
packages: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge. Everything lies in a new folder
below the system's temporary one, and listens on free ports. Files, services and users of the system stay as they are.

A node of such a cluster is a daemon, so it differs from a real one. Switched off are: cgroups (proctrack, task binding,
limits of memory), accounting, and the test if a node has the hardware that the configuration says. The nodes are called
127.0.0.1 and 127.0.0.2, so that their names can be resolved.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NODES = 2
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "setpriv")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=127.0.0.[1-{nodes}] NodeAddr=127.0.0.[1-{nodes}] NodeHostname={host} Port=[{ports[1]}-{ports[2]}] CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Return the commands that are not installed; empty if SLURM can be started."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return " ".join(name for name in COMMANDS if shutil.which(name, path=path) is None)


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start SLURM, yield the environment for its commands, and end it with all that it started."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    configuration = folder / "slurm.conf"
    for name in ("munge", "state", *(f"spool-127.0.0.{node}" for node in range(1, NODES + 1))):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munge requires it
    (folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
    (folder / "munge" / "key").chmod(0o600)
    facts = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "nodes": NODES}
    configuration.write_text(CONFIGURATION.format(folder=folder, ports=_free_ports(), **facts))
    environment = {**os.environ, "SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--foreground", *(f"--{option}={folder}/munge/{name}" for option, name in files.items())]
    nodes = [["slurmd", "-D", "-N", f"127.0.0.{node}"] for node in range(1, NODES + 1)]
    daemons = []
    try:
        for number, command in enumerate((munged, ["slurmctld", "-D"], *nodes)):
            with (folder / f"{number}-{command[0]}.log").open("w") as log:
                # A test that is killed takes the daemons with it.
                whole = ["setpriv", "--pdeathsig", "TERM", *command]
                daemons.append(subprocess.Popen(whole, env=environment, stdout=log, stderr=log))
            _wait((folder / "munge" / "socket").exists, folder)
        _wait(lambda: _idle(environment), folder)
        yield environment
    finally:
        _end(daemons, environment)
        shutil.rmtree(folder)


def _free_ports() -> list[int]:
    """Return ports that nobody uses: the controller's, and the first and last of the nodes'."""
    for first in range(20000 + os.getpid() % 5000, 30000, NODES + 1):
        try:
            for port in range(first, first + NODES + 1):
                socket.create_server(("", port)).close()
        except OSError:
            continue
        return [first, first + 1, first + NODES]
    raise OSError("no port is free")


def _idle(environment: dict[str, str]) -> bool:
    command = ["sinfo", "--noheader", "--format=%D %t"]
    return f"{NODES} idle" in subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _wait(is_there: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not is_there():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path}:\n{path.read_text()}" for path in folder.rglob("*log"))
            raise RuntimeError(f"SLURM does not start\n{logs}")
        time.sleep(0.1)


def _end(daemons: list[subprocess.Popen[bytes]], environment: dict[str, str]) -> None:
    """End the jobs, then the daemons, then what is left of the jobs."""
    for command in ("scancel --state=PENDING,RUNNING --full --signal=KILL", "scancel --me"):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command.split(), env=environment, capture_output=True, timeout=10)
    for daemon in reversed(daemons):
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=10)
        daemon.kill()
        daemon.wait()
    own = f"SLURM_CONF={environment['SLURM_CONF']}".encode()
    for process in Path("/proc").iterdir():  # a job's own processes are no children of a daemon
        with suppress(OSError):
            if process.name.isdecimal() and own in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def main() -> int:
    """Run the command line within a cluster."""
    if lacking := missing():
        print(f"SLURM cannot be started: no {lacking}. {__doc__}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster ends as well
    with cluster() as environment:
        return subprocess.run(sys.argv[1:], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
