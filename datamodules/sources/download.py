"""Download of one file that several mirrors serve, even if some are down, slow, broken or wrong.

All mirrors are asked at once, and the first that delivers is read to the end. If it breaks off or stalls, the next that
answers resumes at the same byte. So does the next process, from the ``.part`` file left behind.
"""

import hashlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from datamodules.errors import DataError, UnreachableError

_EARLIER = "earlier"  # stands for the unknown mirrors of a part that was there before
_WRONG = "served a wrong file"
_Report = Callable[[int, int | None], None]  # gets the bytes so far, and the size of the file if it is known


def download(urls: Sequence[str], target: Path, md5: str, *, patience: float = 15.0) -> Path:
    """Download a file, unless it is there already, and return its path. Of several processes, one does so.

    Args:
        urls: http or https addresses of the file, in any order.
        target: path of the file. An incomplete file is ``<target>.part``, which stays if the download fails.
        md5: MD5 sum of the file, in lower-case hexadecimal digits.
        patience: seconds within which some mirror has to start delivering, and that a mirror may pause.

    Raises:
        DataError: if the target is another file, no mirror serves the right one, or it cannot be written.
        UnreachableError: if no mirror delivers (the rest of) the file.
    """
    part = target.with_name(target.name + ".part")
    try:
        if not _is_there(target, md5):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target):
                if not _is_there(target, md5):
                    with _progress(target.name) as report:
                        _Download(part, md5, patience, report).run(urls)
                    with part.open("r+b") as file:
                        os.fsync(file.fileno())
                    _is_there(target, md5)  # raises rather than overwrite a file that was laid there meanwhile
                    part.replace(target)
    except OSError as error:  # the network's own errors do not come this far
        raise DataError(
            f"Cannot write {target}: {error}. Make room or choose another folder; "
            f"the bytes downloaded so far stay in {part.name}, and the next try resumes from there."
        ) from error
    return target


def _is_there(target: Path, md5: str) -> bool:
    """Return whether the target exists; raise DataError if it is another file, which may be somebody's own."""
    if target.exists() and (found := _md5(target)) != md5:
        raise DataError(f"{target} has the MD5 sum {found} instead of {md5}. Delete it, or put the right file there.")
    return target.exists()


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _lock(target: Path) -> AbstractContextManager[object]:
    """Wait, however long, until no other process downloads the target. A dead process holds no lock."""
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"{target.name}: waiting for another process that downloads it", file=sys.stderr, flush=True)
        return lock.acquire()


class _MirrorError(Exception):
    """A failure of a mirror. It is not an OSError, so a full disk is not mistaken for one."""


class _Answer(NamedTuple):
    url: str
    start: int  # index in the file of the answer's first byte
    total: int | None  # bytes of the whole file, if the mirror tells
    head: bytes  # the first to arrive
    rest: Generator[bytes, None, None]  # raises _MirrorError if not all bytes come


@dataclass
class _Download:
    """A part, which mirrors fill until its MD5 sum is right."""

    part: Path
    md5: str
    patience: float
    report: _Report
    faults: dict[str, str] = field(default_factory=dict)  # each mirror's latest

    def run(self, urls: Sequence[str]) -> None:
        """Fill the part; see :func:`download` for the errors."""
        if self.part.exists() and _md5(self.part) == self.md5:
            return  # the earlier process ended just before it could rename it
        trials = deque([list(urls)])
        while trials:
            mirrors = trials.popleft()
            sources = self._fill(mirrors)
            if not sources:
                continue
            if _md5(self.part) == self.md5:
                return
            self.part.unlink()
            if _EARLIER in sources:  # perhaps the earlier bytes are wrong
                trials.append(mirrors)
            elif len(sources) == 1:
                self.faults.update(dict.fromkeys(sources, _WRONG))
                trials.append([url for url in mirrors if url not in sources])
            else:  # any of them may be the wrong one: try each alone
                trials.extend([url] for url in mirrors)
        raise self._failure()

    def _failure(self) -> DataError:
        tried = "".join(f"\n  {url}: {fault}" for url, fault in self.faults.items())
        tried = f"or put the file at {self.part.with_suffix('')} by hand. Tried:{tried}"
        if size := self._size():
            return UnreachableError(
                f"No mirror delivers the rest of the file. {size:,} bytes are kept in {self.part}: "
                f"try again later to resume from there, {tried}"
            )
        if _WRONG in self.faults.values():
            return DataError(
                f"Every mirror that answered served a wrong file, whose MD5 sum is not {self.md5}. "
                f"Try another network, in case this one answers in their place, {tried}"
            )
        return UnreachableError(f"No mirror delivers the file. Check the network and try again, {tried}")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fill(self, mirrors: list[str]) -> set[str]:
        """Complete the part, and return the mirrors of its bytes; no mirrors if it stays incomplete.

        A mirror is asked again only if the part has grown by it.
        """
        sources = {_EARLIER} if self._size() else set()
        while mirrors:
            grew = list[str]()
            while answer := self._race(mirrors, size := self._size()):
                if self._receive(answer):
                    return {answer.url} if answer.start == 0 else sources | {answer.url}
                sources.add(answer.url)
                mirrors = [url for url in mirrors if url != answer.url]
                if self._size() > size:
                    grew.append(answer.url)
            mirrors = grew
        return set()

    def _race(self, mirrors: list[str], offset: int) -> _Answer | None:
        """Ask all mirrors at once for the bytes from offset on; return the first answer, ``None`` if none comes.

        Later answers are dropped, and close their connections by that.
        """
        asked: dict[futures.Future[_Answer], str] = {futures.Future(): url for url in mirrors}
        for future, url in asked.items():  # an executor's threads would keep the process from ending
            threading.Thread(target=_answer, args=(future, url, offset, self.patience), daemon=True).start()
        try:
            for future in futures.as_completed(asked, timeout=self.patience):
                url = asked.pop(future)
                if (error := future.exception()) is None:
                    return future.result()
                self.faults[url] = _describe(error)
        except futures.TimeoutError:
            self.faults.update(dict.fromkeys(asked.values(), f"no answer within {self.patience:g} s"))
        return None

    def _receive(self, answer: _Answer) -> bool:
        """Write an answer over the part, which never shrinks except to the file's size; return whether all came."""
        with closing(answer.rest), self.part.open("r+b" if self.part.exists() else "wb") as file:
            file.seek(answer.start)
            try:
                for chunk in chain([answer.head], answer.rest):
                    file.write(chunk)
                    self.report(file.tell(), answer.total)
            except _MirrorError as error:
                self.faults[answer.url] = str(error)
                return False
            file.truncate()
            return True


def _answer(future: futures.Future[_Answer], url: str, offset: int, patience: float) -> None:
    try:
        future.set_result(_ask(url, offset, patience))
    except Exception as error:
        future.set_exception(error)


def _ask(url: str, offset: int, patience: float) -> _Answer:
    """Ask a mirror for the bytes from offset on, or for the whole file if it does not serve them alone."""
    if not url.startswith(("http://", "https://")):
        raise _MirrorError("neither http nor https")
    headers = {"User-Agent": "overfitting-lab"}  # some servers turn Python's own away
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=patience)
    except HTTPError as error:
        error.close()
        if offset and error.code == 416:  # the part is no shorter than this mirror's file
            return _ask(url, 0, patience)
        raise _MirrorError(f"HTTP status {error.code} ({error.reason})") from error
    start, total = (0, response.length) if response.status == 200 else (-1, None)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and span:
        start, total = int(span[1]), None if span[2] == "*" else int(span[2])
    if start not in (0, offset):
        response.close()
        if offset:
            return _ask(url, 0, patience)
        raise _MirrorError(f"HTTP status {response.status} with other bytes than asked for")
    chunks = _chunks(response, start, total)
    if not (head := next(chunks, b"")):
        raise _MirrorError("sent nothing")
    return _Answer(url, start, total, head, chunks)


def _chunks(response: HTTPResponse, position: int, total: int | None) -> Generator[bytes, None, None]:
    """Read a response, whose first byte has this position in a file of ``total`` bytes, and close it."""
    with response:
        try:
            while chunk := response.read1(1 << 16):
                position += len(chunk)
                yield chunk
        except (OSError, HTTPException) as error:
            raise _MirrorError(_describe(error)) from error
    if total is not None and position < total:
        raise _MirrorError(f"broke off after {position:,} of {total:,} bytes")


def _describe(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error  # urllib wraps what the socket raised
    return str(reason) or type(reason).__name__


@contextmanager
def _progress(name: str) -> Iterator[_Report]:
    """Show the progress on stderr: a bar on a terminal, else a line every 10 %."""
    shown = -1

    def print_line(done: int, total: int | None) -> None:
        nonlocal shown
        if total and (percent := 100 * done // total // 10 * 10) != shown:
            shown = percent
            print(f"{name}: {percent} % of {total / 1e6:.1f} MB", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield print_line
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = [*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
