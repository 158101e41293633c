import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules.errors import DataError, UnreachableError
from datamodules.sources.download import download
from tests.datamodules.conftest import FullDisk, md5
from tests.processes import start_function

BODY = random.Random(0).randbytes(300_000)
WRONG = BODY[:-1] + bytes([BODY[-1] ^ 1])
MD5 = md5(BODY)
HALF = len(BODY) // 2


@dataclass
class Mirror:
    """A server on this machine, good unless told otherwise."""

    body: bytes = BODY
    knows_ranges: bool = True
    skew: int = 0  # bytes by which it misses the start of a range
    only_ranges: bool = False  # answers 503 to all else
    sends: list[int] = field(default_factory=list)  # bytes of the first, second... answer; everything after these
    stalls: bool = False  # keeps the connection instead of breaking off
    tells_length: bool = True
    pause: float = 0  # seconds before every tenth of the body
    gate: threading.Event | None = None  # does not answer before it is set
    asked: list[str | None] = field(default_factory=list)  # the Range headers that came
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append(wanted)
        if self.gate:
            self.gate.wait(60)
        if self.only_ranges and not wanted:
            request.send_error(503)
            return
        start = 0
        if wanted and self.knows_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) - self.skew  # type: ignore[index]
            if start >= len(self.body):
                request.send_error(416)
                return
        body = self.body[start:]
        if start:
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            request.send_response(200)
        if self.tells_length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        sent = body[: self.sends.pop(0)] if self.sends else body
        step = len(self.body) // 10
        for at in range(0, len(sent), step):
            self.closing.wait(self.pause)
            request.wfile.write(sent[at : at + step])
        if self.stalls and len(sent) < len(body):
            self.closing.wait(20)


Serve = Callable[[Mirror], Mirror]


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing where the client hangs up, as it does on mirrors that were not the first."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("no_proxy", "*")
    with ExitStack() as stack:

        def start(mirror: Mirror) -> Mirror:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    mirror.answer(self)

                def log_message(self, format: str, *args: object) -> None:
                    """Keeps stderr for the download's own lines."""

            server = stack.enter_context(Server(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(mirror.closing.set)
            mirror.url = f"http://127.0.0.1:{server.server_port}/file"
            return mirror

        yield start


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/file"


@pytest.fixture
def vanishing() -> Iterator[str]:
    """Drops the packets that would open a connection, since its queue of connections is full."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/file"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "file"


def part_of(target: Path) -> Path:
    return target.with_name("file.part")


def lay(path: Path, content: bytes) -> Path:
    path.parent.mkdir()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("tells_length", [True, False])
def test_good_mirror(serve: Serve, target: Path, tells_length: bool) -> None:
    mirror = serve(Mirror(tells_length=tells_length))
    assert download([mirror.url], target, MD5) == target
    assert target.read_bytes() == BODY
    assert mirror.asked == [None]
    assert not part_of(target).exists()


@pytest.mark.thorough
def test_slow_but_steady_mirror_may_take_longer_than_patience(serve: Serve, target: Path) -> None:
    begin = time.monotonic()
    download([serve(Mirror(pause=0.3)).url], target, MD5, patience=2)
    assert target.read_bytes() == BODY
    assert time.monotonic() - begin > 2


@pytest.mark.thorough
@pytest.mark.parametrize("stalls", [False, True])
def test_another_mirror_goes_on_where_one_broke_off_or_stalled(serve: Serve, target: Path, stalls: bool) -> None:
    first = serve(Mirror(sends=[HALF], stalls=stalls))
    second = serve(Mirror(only_ranges=True))
    begin = time.monotonic()
    download([first.url, second.url], target, MD5, patience=3)
    assert time.monotonic() - begin < 20
    assert target.read_bytes() == BODY
    assert first.asked == [None]
    assert {*second.asked} - {None} == {f"bytes={HALF}-"}  # its server may note the first request after this one


def test_mirror_resumes_itself(serve: Serve, target: Path) -> None:
    mirror = serve(Mirror(sends=[1000, 2000]))
    download([mirror.url], target, MD5)
    assert target.read_bytes() == BODY
    assert mirror.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_gives_up_when_no_mirror_gets_any_further(serve: Serve, target: Path) -> None:
    mirror = serve(Mirror(sends=[1000, 0]))
    with pytest.raises(UnreachableError, match=r"1,000 bytes are kept in .*file\.part: try again later") as raised:
        download([mirror.url], target, MD5)
    assert f"{mirror.url}: broke off after 1,000 of 300,000 bytes" in str(raised.value)
    assert part_of(target).read_bytes() == BODY[:1000]
    assert not target.exists()


def test_mirror_that_ignores_ranges_ends_even_if_it_breaks_off(serve: Serve, target: Path) -> None:
    mirror = serve(Mirror(knows_ranges=False, sends=[HALF, 1000]))
    with pytest.raises(UnreachableError):
        download([mirror.url], target, MD5)
    assert part_of(target).read_bytes() == BODY[:HALF]
    assert mirror.asked == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize(
    "mirror", [Mirror(), Mirror(knows_ranges=False), Mirror(skew=1)], ids=["good", "ignores ranges", "misses ranges"]
)
def test_part_of_an_earlier_process_is_resumed_or_all_served_anew(serve: Serve, target: Path, mirror: Mirror) -> None:
    lay(part_of(target), BODY[:HALF])
    download([serve(mirror).url], target, MD5)
    assert target.read_bytes() == BODY
    assert mirror.asked[0] == f"bytes={HALF}-"
    assert len(mirror.asked) == 1 + (mirror.skew > 0)


def test_complete_part_needs_no_mirror(refusing: str, target: Path) -> None:
    lay(part_of(target), BODY)
    download([refusing], target, MD5)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("part", [b"x" * 10, WRONG, BODY + b"x"], ids=["short", "full", "long"])
def test_part_with_other_bytes_is_replaced(serve: Serve, target: Path, part: bytes) -> None:
    lay(part_of(target), part)
    download([serve(Mirror()).url], target, MD5)
    assert target.read_bytes() == BODY


def test_right_mirror_is_used_after_a_wrong_one(serve: Serve, target: Path) -> None:
    right = serve(Mirror(gate=threading.Event()))
    wrong = serve(Mirror(body=WRONG))
    assert right.gate
    opening = threading.Timer(0.5, right.gate.set)
    opening.start()
    download([right.url, wrong.url], target, MD5)
    opening.join()
    assert target.read_bytes() == BODY
    assert wrong.asked == [None]


def test_mirrors_are_told_apart_if_only_their_mixture_is_wrong(serve: Serve, target: Path) -> None:
    right = serve(Mirror(sends=[HALF, HALF - 1]))
    wrong = serve(Mirror(body=WRONG, only_ranges=True))
    download([wrong.url, right.url], target, MD5)
    assert target.read_bytes() == BODY
    assert right.asked == [None, None, f"bytes={HALF - 1}-"]


def test_only_wrong_mirrors(serve: Serve, refusing: str, target: Path) -> None:
    wrong = [serve(Mirror(body=WRONG)).url, serve(Mirror(body=b"<html>Please log in</html>")).url]
    with pytest.raises(DataError, match="Every mirror that answered served a wrong file") as raised:
        download([*wrong, refusing], target, MD5)
    assert not isinstance(raised.value, UnreachableError)
    assert all(f"{url}: served a wrong file" in str(raised.value) for url in wrong)
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == []


def test_mirrors_that_refuse_or_lack_the_file_are_given_up_at_once(serve: Serve, refusing: str, target: Path) -> None:
    faults = {
        refusing: ".*refused",
        refusing.replace("file", "other"): ".*refused",
        serve(Mirror(only_ranges=True)).url: "HTTP status 503",
        serve(Mirror(body=b"")).url: "sent nothing",
        Path(__file__).as_uri(): "neither http nor https",
    }
    begin = time.monotonic()
    with pytest.raises(UnreachableError, match="No mirror delivers the file") as raised:
        download(list(faults), target, MD5, patience=60)
    assert time.monotonic() - begin < 60
    for url, fault in faults.items():
        assert re.search(f"{url}: {fault}", str(raised.value))


@pytest.mark.thorough
def test_waits_for_silent_vanishing_and_dripping_mirrors_do_not_add_up(
    serve: Serve, silent: str, vanishing: str, refusing: str, target: Path
) -> None:
    class Dripping(Mirror):
        def answer(self, request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.flush_headers()
            while not self.closing.wait(0.2):
                request.wfile.write(b"x")

    dripping = serve(Dripping()).url
    begin = time.monotonic()
    with pytest.raises(UnreachableError) as raised:
        download([silent, vanishing, dripping, refusing, silent], target, MD5, patience=3)
    assert 3 <= time.monotonic() - begin < 3 * 3
    for url in silent, vanishing, dripping:
        assert re.search(f"{url}: .*(no answer within 3 s|timed out)", str(raised.value))


def test_good_mirror_does_not_wait_for_others(serve: Serve, silent: str, vanishing: str, target: Path) -> None:
    begin = time.monotonic()
    download([silent, vanishing, serve(Mirror()).url], target, MD5, patience=30)
    assert target.read_bytes() == BODY
    assert time.monotonic() - begin < 30


@pytest.mark.thorough
def test_second_process_waits_for_the_first(serve: Serve, target: Path, tmp_path: Path) -> None:
    mirror = serve(Mirror(gate=threading.Event()))
    assert mirror.gate
    patient = partial(download, patience=60)
    processes = [start_function(patient, ([mirror.url], target, MD5), tmp_path, no_proxy="*") for _ in range(2)]
    output = tmp_path / "output.txt"
    while not output.exists() or "waiting for another process" not in output.read_text():
        assert [process.is_alive() for process in processes] == [True, True]
        assert len(mirror.asked) <= 1
        time.sleep(0.01)
    mirror.gate.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert target.read_bytes() == BODY
    assert mirror.asked == [None]


def test_right_file_laid_by_hand_needs_no_mirror(target: Path) -> None:
    lay(target, BODY)
    assert download([], target, MD5) == target
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("meanwhile", [False, True])
def test_wrong_file_laid_by_hand_is_kept(meanwhile: bool, serve: Serve, target: Path) -> None:
    class Laying(Mirror):
        def answer(self, request: BaseHTTPRequestHandler) -> None:
            target.write_bytes(b"mine")
            super().answer(request)

    mirror = serve(Laying())
    if not meanwhile:
        lay(target, b"mine")
    with pytest.raises(DataError, match=rf"file has the MD5 sum {md5(b'mine')} instead of {MD5}\. Delete it"):
        download([mirror.url], target, MD5)
    assert target.read_bytes() == b"mine"
    assert mirror.asked == [None] * meanwhile


def test_folder_that_cannot_be_written(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    mirror = serve(Mirror())
    with pytest.raises(DataError, match=r"Cannot write .* choose another folder"):
        download([mirror.url], tmp_path / "data" / "file", MD5)
    assert mirror.asked == []


def test_disk_that_fills_up_keeps_the_part(serve: Serve, target: Path, full_disk: FullDisk) -> None:
    with full_disk(HALF), pytest.raises(DataError, match="Make room") as raised:
        download([serve(Mirror()).url], target, MD5)
    assert not isinstance(raised.value, UnreachableError)
    assert part_of(target).read_bytes() == BODY[:HALF]


def test_progress_lines(serve: Serve, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download([serve(Mirror(pause=0.02)).url], target, MD5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "file: 100 % of 0.3 MB"
    assert 3 <= len(err.splitlines()) <= 11


def test_progress_bar_on_a_terminal(
    serve: Serve, target: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    download([serve(Mirror()).url], target, MD5)
    assert "100%" in capsys.readouterr().err
