"""Fetches one file that several mirrors serve byte for byte, even where some are down, slow, broken or wrong.

Every mirror is asked at once and the first that delivers is read to the end. A mirror that breaks off or stalls is left
for the next that answers, which goes on at the same byte; so does the next process, from the ``.part`` left behind.
"""

import hashlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from datamodules.errors import DataError, UnreachableError

_CHUNK = 1 << 16  # bytes
_EARLIER = "earlier"  # stands for whatever mirrors the bytes of a part came from that was there already

_Report = Callable[[int, int | None], None]  # takes the bytes had so far and, where it is known, the size of the file


def download(urls: Sequence[str], target: Path, md5: str, *, patience: float = 15.0) -> Path:
    """Fetches a file, unless it is there already; one process at a time does so, and others wait for it.

    Args:
        urls: Where the file is served, over http or https; the order does not matter.
        target: Where the file goes. While incomplete it is called ``<target>.part``, and is kept if the download fails.
        md5: The file's MD5 sum, in lower-case hexadecimal digits.
        patience: How many seconds all mirrors together have to start delivering, and how long one may then pause.

    Returns:
        The target, whose MD5 sum is the right one.

    Raises:
        DataError: The target is another file, no mirror serves the right one, or it cannot be written.
        UnreachableError: No mirror delivers (the rest of) the file.
    """
    part = target.with_name(target.name + ".part")
    try:
        if not _is_there(target, md5):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target):
                if not _is_there(target, md5):
                    with _progress(target.name) as report:
                        _fetch(urls, part, md5, patience, report)
                    _put_in_place(part, target, md5)
    except OSError as error:  # the network's own errors do not come this far
        raise DataError(
            f"Cannot write {target}: {error}. Make room or choose another folder; "
            f"what has come so far stays in {part.name}, and the next try goes on from there."
        ) from error
    return target


def _is_there(target: Path, md5: str) -> bool:
    """Tells whether the target is there; raises DataError if it is another file, which may be somebody's own."""
    if not target.exists():
        return False
    if (found := _md5(target)) != md5:
        raise DataError(f"{target} has the MD5 sum {found} instead of {md5}. Delete it, or put the right file there.")
    return True


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _lock(target: Path) -> AbstractContextManager[object]:
    """Waits until no other process downloads the target, however long that takes: a dead process holds no lock."""
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"{target.name}: waiting for another process that downloads it", file=sys.stderr, flush=True)
        return lock.acquire()


def _put_in_place(part: Path, target: Path, md5: str) -> None:
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    _is_there(target, md5)  # raises rather than overwrite what somebody laid there meanwhile
    part.replace(target)


def _fetch(urls: Sequence[str], part: Path, md5: str, patience: float, report: _Report) -> None:
    """Fills the part until its MD5 sum is right.

    Raises:
        DataError: Every mirror that answered served a wrong file.
        UnreachableError: No mirror delivers (the rest of) the file.
    """
    if part.exists() and _md5(part) == md5:
        return  # the earlier process ended just before it could rename it
    faults: dict[str, str] = {}
    wrong: set[str] = set()
    trials = deque([list(urls)])
    while trials:
        mirrors = trials.popleft()
        sources = _fill(part, mirrors, patience, faults, report)
        if not sources:
            continue
        if _md5(part) == md5:
            return
        part.unlink()
        if _EARLIER in sources:  # it may be those bytes that are wrong
            trials.append(mirrors)
        elif len(sources) == 1:
            wrong |= sources
            faults.update(dict.fromkeys(sources, "served a wrong file"))
            trials.append([url for url in mirrors if url not in sources])
        else:  # any of them may be the wrong one: each has to show by itself
            trials.extend([url] for url in mirrors)
    raise _failure(part, md5, faults, bool(wrong))


def _failure(part: Path, md5: str, faults: dict[str, str], wrong: bool) -> DataError:
    remedy = f"or put the file at {part.with_suffix('')} by hand. Tried:"
    tried = "\n  ".join([remedy, *(f"{url}: {fault}" for url, fault in faults.items())])
    if size := _size(part):
        return UnreachableError(
            f"No mirror delivers the rest of the file. {size:,} bytes are kept in {part}: "
            f"try again later to go on from there, {tried}"
        )
    if wrong:
        return DataError(
            f"Every mirror that answered served a wrong file, whose MD5 sum is not {md5}. "
            f"Try another network, in case this one answers in their place, {tried}"
        )
    return UnreachableError(f"No mirror delivers the file. Check the network and try again, {tried}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fill(part: Path, mirrors: Sequence[str], patience: float, faults: dict[str, str], report: _Report) -> set[str]:
    """Completes the part from the mirrors, trying one again only if the part has grown by it.

    Args:
        part: The file to complete, from its present end on.
        mirrors: The addresses to use.
        patience: Seconds, as in download.
        faults: Takes what was last wrong with a mirror.
        report: Told of the progress.

    Returns:
        The mirrors whose bytes the complete part holds; none if it stays incomplete.
    """
    sources = {_EARLIER} if _size(part) else set()
    waiting: list[str] = list(mirrors)
    grew: list[str] = []
    while waiting or grew:
        if not waiting:
            waiting, grew = grew, []
        size = _size(part)
        answer = _race(waiting, size, patience, faults)
        if answer is None:
            waiting = []
            continue
        fault = _receive(answer, part, report)
        if fault is None:
            return {answer.url} if answer.start == 0 else sources | {answer.url}
        sources.add(answer.url)
        faults[answer.url] = fault
        waiting.remove(answer.url)
        if _size(part) > size:
            grew.append(answer.url)
    return set()


@dataclass
class _Answer:
    """A mirror's answer, of which the first chunk has arrived."""

    url: str
    response: HTTPResponse
    start: int  # where in the file the answer starts, in bytes
    total: int | None  # the size of the file in bytes, where the mirror tells it
    chunks: Iterator[bytes]


def _race(mirrors: Sequence[str], offset: int, patience: float, faults: dict[str, str]) -> _Answer | None:
    """Asks all mirrors at once for the bytes from offset on.

    Returns:
        The first answer, or None once all mirrors have failed or patience, in seconds, has run out.
    """
    asked = {_ask_in_background(url, offset, patience): url for url in mirrors}
    try:
        for future in futures.as_completed(asked, timeout=patience):
            url = asked.pop(future)
            if (error := future.exception()) is None:
                return future.result()
            faults[url] = _describe(error)
    except futures.TimeoutError:
        faults.update(dict.fromkeys(asked.values(), f"no answer within {patience:g} s"))
    finally:
        for future in asked:
            future.add_done_callback(_discard)
    return None


def _ask_in_background(url: str, offset: int, patience: float) -> futures.Future[_Answer]:
    """Asks in a daemon thread of its own: unlike an executor's, it never keeps the process from ending."""
    future: futures.Future[_Answer] = futures.Future()

    def run() -> None:
        try:
            future.set_result(_ask(url, offset, patience))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _discard(future: futures.Future[_Answer]) -> None:
    if future.exception() is None:
        future.result().response.close()


def _describe(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error  # urllib wraps what the socket raised
    return str(reason) or type(reason).__name__


def _ask(url: str, offset: int, patience: float) -> _Answer:
    """Asks a mirror for the bytes from offset on, or for the whole file if it does not serve them alone."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("neither http nor https")
    headers = {"User-Agent": "overfitting-lab"}  # some servers turn Python's own away
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=patience)
    except HTTPError as error:
        error.close()
        if offset and error.code == 416:  # the part is no shorter than this mirror's file
            return _ask(url, 0, patience)
        raise ConnectionError(f"HTTP status {error.code} ({error.reason})") from error
    with ExitStack() as on_failure:
        on_failure.enter_context(response)
        start, total = _span(response)
        if start not in (0, offset):
            if offset:
                return _ask(url, 0, patience)
            raise ConnectionError(f"HTTP status {response.status} with other bytes than asked for")
        chunks = _chunks(response, start, total)
        if not (head := next(chunks, b"")):
            raise ConnectionError("sent nothing")
        on_failure.pop_all()
    return _Answer(url, response, start, total, chain([head], chunks))


def _span(response: HTTPResponse) -> tuple[int, int | None]:
    """Tells where in the file a response starts, -1 if that is unclear, and how long the file is, if that is told."""
    if response.status == 200:
        return 0, response.length
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status != 206 or content_range is None:
        return -1, None
    start, total = content_range.groups()
    return int(start), None if total == "*" else int(total)


def _chunks(response: HTTPResponse, start: int, total: int | None) -> Iterator[bytes]:
    """Yields bytes as they arrive, up to the end of the file; raises ConnectionError if they end before."""
    position = start
    while total is None or position < total:
        chunk = response.read1(_CHUNK if total is None else min(_CHUNK, total - position))
        if chunk:
            position += len(chunk)
            yield chunk
        elif total is None:
            return
        else:
            raise ConnectionError(f"broke off after {position:,} of {total:,} bytes")


def _receive(answer: _Answer, part: Path, report: _Report) -> str | None:
    """Writes an answer into the part, over what is there: the part never shrinks, except to the size of the file.

    Returns:
        Why the mirror did not deliver everything, or None if it did.
    """
    with answer.response, part.open("r+b" if part.exists() else "wb") as file:
        position = file.seek(answer.start)
        while True:
            try:
                chunk = next(answer.chunks, b"")
            except (OSError, HTTPException) as error:
                return _describe(error)
            if not chunk:
                file.truncate()
                return None
            position += file.write(chunk)
            report(position, answer.total)


@contextmanager
def _progress(name: str) -> Iterator[_Report]:
    """Shows on stderr how far the download is: a bar on a terminal, else a line every 10 %."""
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = [*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(name: str) -> _Report:
    shown = -1

    def report(done: int, total: int | None) -> None:
        nonlocal shown
        if total and (percent := 100 * done // total // 10 * 10) != shown:
            shown = percent
            print(f"{name}: {percent} % of {total / 1e6:.1f} MB", file=sys.stderr, flush=True)

    return report
