"""The meeting of several processes, within a minute: where they meet, through which network, and who is gone."""

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

if sys.platform == "linux":
    import fcntl

PATIENCE = timedelta(seconds=45)  # longest time in which a process must answer the others


class ProcessError(Exception):
    """The processes of a run cannot meet, or one of them is gone or does not answer. The message names the cause."""


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
            raise ProcessError(refused_port(port, os.strerror(error.errno))) from None


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


def refused_port(port: int, reason: str) -> str:
    """Return the sentence about a port at which the processes cannot meet."""
    return f"the processes cannot meet at MASTER_PORT={port}: {reason}. Set it to a free port, or unset it"
