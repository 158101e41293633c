"""Two network namespaces with a cable between them, as two machines that share a disk."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import PATHS, ROOT

NETWORK = "10.99.88"
BUILD = """\
set -e
trap 'for host in "$@"; do ip netns pids $host | xargs -r kill -KILL; ip netns delete $host; done' EXIT
for host in "$@"; do ip netns add $host; done
ip link add eth0 netns $1 type veth peer name eth0 netns $2
number=0
for host in "$@"; do
    number=$((number + 1))
    ip -n $host link set lo up
    ip -n $host link set eth0 up
    ip -n $host address add NETWORK.$number/24 dev eth0
done
echo built
read -r _ || true
""".replace("NETWORK", NETWORK)  # all of it ends with this process, however that ends: the pipe closes


def reason_to_skip() -> str:
    """Return what is missing; empty if there can be namespaces."""
    if os.geteuid() or not shutil.which("ip"):
        return "network namespaces need root, and the program ip (Debian: apt-get install iproute2)"
    trial = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True, text=True)
    return f"no network namespaces here: {trial.stderr.strip()}" if trial.returncode else ""


class Hosts:
    """Two hosts, 0 and 1."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._names = names
        self._folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def torchrun(self, *arguments: str) -> list[subprocess.Popen[str]]:
        """Start ``fit.py`` on both, with one process on each."""
        environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
        started: list[subprocess.Popen[str]] = []
        for rank, name in enumerate(self._names):
            torchrun = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            place = [f"--master-addr={NETWORK}.1", "--master-port=29500"]
            command = [sys.executable, "-m", "torch.distributed.run", *torchrun, *place]
            script = [str(ROOT / "scripts" / "fit.py"), *arguments, "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
            with self.output(rank).open("w") as output:
                on_host = ["ip", "netns", "exec", name, *command, *script]
                started.append(
                    subprocess.Popen(
                        on_host, cwd=self._folder, env=environment, stdout=output, stderr=output, text=True
                    )
                )
        self.started += started
        return started

    def output(self, host: int) -> Path:
        """Return the file with a host's output."""
        return self._folder / f"host {host}.txt"

    def plug(self, in_or_out: bool) -> None:
        """Plug the second host in or out."""
        state = "up" if in_or_out else "down"
        subprocess.run(["ip", "-n", self._names[1], "link", "set", "eth0", state], check=True)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Have two hosts within a block, whose programs run in the folder."""
    names = [f"lab-{os.getpid()}-{number}" for number in range(2)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", BUILD, "sh", *names], text=True, **pipes) as built:
        assert built.stdout is not None
        assert built.stdout.readline() == "built\n"
        hosts = Hosts(names, folder)
        yield hosts
        # The end of the block closes the pipe.
    for program in hosts.started:
        program.wait()
