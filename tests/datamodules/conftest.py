"""A disk that is full, and mirrors that nobody serves."""

import hashlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from datamodules.sources import CIFAR10

FullDisk = Callable[[int], AbstractContextManager[None]]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address on this machine where nobody listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/file"


@pytest.fixture
def no_mirror(refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 cannot be downloaded."""
    monkeypatch.setattr(CIFAR10, "MIRRORS", (refusing,))


@pytest.fixture
def full_disk() -> FullDisk:
    """Makes files of more bytes than the given number fail."""
    if sys.platform == "win32":
        pytest.skip("needs a limit on the size of files")
    import resource

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)

    return limited
