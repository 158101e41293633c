"""A PostgreSQL server on loopback that a test starts and stops, from the binaries of the system's packages."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal

PASSWORD = "open sesame"
START = """\
"$1/postgres" -D "$2" -p "$3" -k "$2" -c listen_addresses=127.0.0.1 -c fsync=off </dev/null >>"$2/log" 2>&1 &
read -r signal
kill -s "${signal:-QUIT}" $!
wait $!
"""  # it ends with this process, however that ends: the pipe closes


def binaries() -> Path | None:
    """Return the folder of the newest server's binaries; ``None`` if there is none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def reason_to_skip() -> str:
    """Return what is missing; empty if a server can be started."""
    if binaries() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        return "PostgreSQL does not run as root, and there is no user postgres"
    return "" if find_spec("psycopg") else "the driver is not installed (pip install 'psycopg[binary]')"


class Server:
    """A server with one database, whose owner has a password. It may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        found = binaries()
        assert found is not None
        self._binaries = found
        self._folder = folder
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(folder, "postgres")
            shutil.chown(password, "postgres")
        self._data = folder / "data"
        initdb = [str(found / "initdb"), "-D", str(self._data), "-U", "lab", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run([*self._user, *initdb, f"--pwfile={password}"], check=True, capture_output=True, cwd=folder)
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        """URL of the database, with the password."""
        return f"postgresql+psycopg://lab:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = ["sh", "-c", START, "sh", str(self._binaries), str(self._data), str(self.port)]
        self._process = subprocess.Popen([*self._user, *command], stdin=subprocess.PIPE, text=True, cwd=self._folder)
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def stop(self, signal: Literal["INT", "QUIT"] = "QUIT") -> None:
        """Stop the server. INT ends its sessions with a message, QUIT is a crash."""
        assert self._process is not None
        assert self._process.stdin is not None
        stdin: IO[str] = self._process.stdin
        with stdin:
            stdin.write(f"{signal}\n")
        self._process.wait(60)

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the server has said."""
        return (self._data / "log").read_text()


@contextmanager
def served() -> Iterator[Server]:
    """Run a server within a block."""
    folder = Path(
        tempfile.mkdtemp(prefix="overfitting-lab-postgres-")
    )  # pytest's own folders are closed to other users
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            if server.running:
                server.stop()
    finally:
        shutil.rmtree(folder)
