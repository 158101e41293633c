import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import IO, Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from overfitting_lab.cli import finished
from overfitting_lab.runs import runs_of
from overfitting_lab.sweeps.database import StorageError
from overfitting_lab.sweeps.storage import begin_trial, open_storage, open_study
from overfitting_lab.sweeps.workers import GONE, is_gone
from tests.conftest import Flags, Script
from tests.postgres import PASSWORD, Server, reason_to_skip, served
from tests.processes import kill_group, start_worker

FOLDER = Path("lightning_logs/ablation")
TWO_TRIALS = ("--seeds=1", "--sizes", "40", "60")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server for the tests of this file."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with served() as server:
        yield server


@pytest.fixture
def database(server: Server) -> str:
    """Return the URL of an empty database."""
    if not server.running:
        server.start()
    engine = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS trials WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE trials"))
    return server.url.removesuffix("postgres") + "trials"


@pytest.fixture
def small(short: Flags) -> Flags:
    """Return flags of a trial that takes less than a second."""
    flags = (flag for flag in short if "train_size" not in flag)
    return ("--model=tests.networks.Tiny", *flags, "--trainer.max_epochs=1", *TWO_TRIALS)


EIGHT, KILLS = 8, 12
TIMEOUT = 240


@pytest.mark.long
@pytest.mark.postgres
def test_eight_workers_killed_at_random_and_a_server_restarted_amid_them(
    run_script: Script, small: Flags, fitted: list[list[str]], server: Server, database: str, tmp_path: Path
) -> None:
    """Each setting is trained once, and the table is the one that a single worker makes without any fault."""
    sizes = [*map(str, range(20, 100, 8))]
    flags = [*small, "--seeds=2", "--sizes", *sizes, "--trainer.max_epochs=10", "--checkpoint_steps=2"]
    shared = [*flags, f"--storage={database}", f"--trainer.default_root_dir={tmp_path}"]
    random = Random(0)
    folders = [tmp_path / f"worker {number}" for number in range(EIGHT)]
    for folder in folders:
        folder.mkdir()
    workers = [start_worker("ablate", shared, folder) for folder in folders]
    for kill in range(KILLS):
        time.sleep(random.uniform(1, 4))
        if kill == KILLS // 3:
            deadline = time.monotonic() + TIMEOUT
            while not all(map(has_opened, folders)):
                assert time.monotonic() < deadline  # a worker that begins without a server is refused
                time.sleep(0.1)
            server.stop()
            time.sleep(5)
            server.start()
        number = random.randrange(EIGHT)
        kill_group(workers[number])
        with (folders[number] / "output.txt").open("a") as output:
            output.write("restarted\n")
        workers[number] = start_worker("ablate", shared, folders[number])
    for worker in workers:
        worker.join()
    said = "".join((folder / "output.txt").read_text() for folder in folders)
    assert [worker.exitcode for worker in workers] == [0] * EIGHT, said
    assert "Traceback" not in said
    assert "storage    answers again" in said
    last = run_script("ablate", *shared)
    assert last.status == 0, last.err
    assert fitted == []

    together, alone = [tmp_path / name / FOLDER for name in ("", "alone")]
    made = [run for run in runs_of(together) if run.status != "unknown"]
    assert len(made) == len(
        {tuple(run.settings[name] for name in ("data.train_size", "seed_everything")) for run in made}
    )
    study = optuna.load_study(study_name="ablation, sizes", storage=open_storage(together, database, ""))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    settings = [tuple(trial.user_attrs["setting"].items()) for trial in complete]
    assert len(settings) == len(set(settings)) == len(made) == 2 * len(sizes)
    killed = study.get_trials(states=(TrialState.FAIL,))
    assert killed, "every kill came between two trials"
    print(f"{len(complete)} trials; {len(killed)} more were begun by workers that were killed")

    assert run_script("ablate", *flags, f"--trainer.default_root_dir={tmp_path / 'alone'}").status == 0
    assert table(together) == table(alone)


def has_opened(folder: Path) -> bool:
    """Tell if the last worker that was started in a folder has opened the storage."""
    output = folder / "output.txt"
    return output.is_file() and "design  " in output.read_text().rpartition("restarted")[2]


def table(folder: Path) -> Any:
    """Return the results of a study's page, without times and places."""
    trials = json.loads((folder / "sizes.json").read_text())["trials"]
    return sorted(
        str({name: fact for name, fact in each.items() if name not in ("seconds", "origin")}) for each in trials
    )


@pytest.fixture
def after_training(fitted: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that sets what happens when the first trial has trained and its result is not yet stored."""
    run = finished.run_command

    def set_event(event: Callable[[], object]) -> None:
        def run_and_happen(command: list[str], output: IO[str] | None) -> int:
            status = run(command, output)
            if len(fitted) == 1:
                event()
            return status

        monkeypatch.setattr("overfitting_lab.cli.finished.run_command", run_and_happen)

    return set_event


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("psycopg:", "psycopgg:"), ["psycopgg", "give a URL for SQLAlchemy, such as postgresql+psycopg://"]),
        (("psycopg:", "pg8000:"), ["No module named 'pg8000'; install this driver", "'psycopg[binary]'"]),
        (("127.0.0.1", "nowhere.invalid"), ["nowhere.invalid", "check its host, port"]),
        ((":PORT", ":1"), ["port 1 failed: Connection refused", "check its host, port"]),
        ((":PORT", ":port"), ["give a URL for SQLAlchemy"]),
        (("/trials", "/trails"), ['database "trails" does not exist', "check its host, port, database and user"]),
        (("lab:", "nobody:"), ['authentication failed for user "nobody"', "check its host, port, database and user"]),
    ],
)
def test_a_wrong_url_is_refused_at_once_with_the_drivers_reason(
    change: tuple[str, str], said: list[str], database: str, server: Server, tmp_path: Path
) -> None:
    before, after = (part.replace("PORT", str(server.port)) for part in change)
    url = database.replace(before, after)
    assert url != database
    begun = time.monotonic()
    with pytest.raises(StorageError) as raised:
        open_storage(tmp_path, url, "")
    assert time.monotonic() - begun < 30, "nobody waits for a database that may not be there"
    message = str(raised.value)
    assert message.startswith("--storage postgresql+p")
    assert " cannot be used: " in message
    assert all(part in message for part in said), message
    assert not any(word in message for word in PASSWORD.split())
    assert "\n" not in message


@pytest.mark.postgres
def test_workers_without_a_folder_in_common_create_the_tables_at_once(database: str, tmp_path: Path) -> None:
    failures: list[Exception] = []
    together = threading.Barrier(6)

    def work(number: int) -> None:
        together.wait()
        try:
            storage = open_storage(tmp_path / str(number) / "lab", database, "")
            open_study(storage, Path("lab"), "sizes")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    (study,) = optuna.get_all_study_names(open_storage(tmp_path, database, ""))
    assert study == "lab, sizes"


@pytest.mark.thorough
@pytest.mark.postgres
def test_a_server_that_restarts_amid_a_trial_delays_its_result(
    run_script: Script,
    small: Flags,
    fitted: list[list[str]],
    after_training: Callable[[Callable[[], object]], None],
    server: Server,
    database: str,
) -> None:
    later = threading.Timer(3, server.start)

    def restart() -> None:
        server.stop()
        later.start()

    after_training(restart)
    outcome = run_script("ablate", *small, f"--storage={database}")
    later.join()
    assert outcome.status == 0, outcome.err
    assert "waits up to 0:10:00 for the database: connection failed: " in outcome.out
    assert "storage    answers again, after 0:00:0" in outcome.out
    assert outcome.out.count("done ") == len(fitted) == 2
    assert (FOLDER / "sizes.md").is_file()


@pytest.mark.thorough
@pytest.mark.postgres
def test_a_server_that_stays_away_is_named_and_the_run_is_found_again(
    run_script: Script,
    small: Flags,
    fitted: list[list[str]],
    after_training: Callable[[Callable[[], object]], None],
    server: Server,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("overfitting_lab.sweeps.storage.PATIENCE", 1)
    after_training(lambda: server.stop("INT"))
    stopped = run_script("ablate", *small, f"--storage={database}")
    assert stopped.status == 1
    assert "postgresql+psycopg://lab:PASSWORD@127.0.0.1" in stopped.err
    assert " has not answered for 0:00:0" in stopped.err
    assert "Connection refused" in stopped.err
    assert "finished runs are kept, so start this again when it answers" in stopped.err
    assert "Traceback" not in stopped.err
    assert len(fitted) == 1

    server.start()
    outcome = run_script("ablate", *small, f"--storage={database}")
    assert outcome.status == 0, outcome.err
    assert len(fitted) == len(runs_of(FOLDER)) == 2, "the first trial's run is found again"


def hold(path: Path, seconds: float) -> threading.Thread:
    """Lock a SQLite database for some time."""
    locked = threading.Event()

    def lock() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(seconds)
            connection.execute("COMMIT")

    thread = threading.Thread(target=lock)
    thread.start()
    locked.wait()
    return thread


@pytest.mark.parametrize(
    "seconds", [pytest.param(3, marks=pytest.mark.thorough), pytest.param(150, marks=pytest.mark.long)]
)
def test_a_locked_sqlite_database_delays_a_result_and_a_start(
    seconds: int,
    run_script: Script,
    small: Flags,
    fitted: list[list[str]],
    after_training: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if seconds < 10:
        monkeypatch.setattr("overfitting_lab.sweeps.database.LOCKED", 0.1)
        monkeypatch.setattr("overfitting_lab.sweeps.database.PAUSE", 0.5)
    path = tmp_path / "trials.db"
    after_training(lambda: hold(path, seconds))
    outcome = run_script("ablate", *small, f"--storage=sqlite:///{path}")
    assert outcome.status == 0, outcome.err
    assert "waits up to 0:10:00 for the database: database is locked" in outcome.out
    assert outcome.out.count("done ") == len(fitted) == 2

    hold(path, seconds)
    again = run_script("ablate", *small, f"--storage=sqlite:///{path}")
    assert again.status == 0, again.err
    assert "for the database: database is locked" in again.out
    assert len(fitted) == 2


def test_a_worker_that_could_give_no_sign_of_life_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overfitting_lab.sweeps.database.LOCKED", 0.1)
    monkeypatch.setattr("overfitting_lab.sweeps.database.PAUSE", 0.2)
    path = tmp_path / "trials.db"
    storage = open_storage(tmp_path, f"sqlite:///{path}", "")
    study = open_study(storage, tmp_path, "sizes")
    trial = study.ask()
    assert is_gone(study.trials[0], storage), "it has no worker"
    trial.set_user_attr("worker", "elsewhere:1")
    trial.set_user_attr("alive", time.time() - 2 * GONE)
    assert is_gone(study.trials[0], storage)
    hold(path, 1)
    trial.set_user_attr("locked", True)
    assert not is_gone(study.trials[0], storage)


def test_a_connection_that_is_lost_amid_an_operation_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overfitting_lab.sweeps.database.LOCKED", 0.1)
    monkeypatch.setattr("overfitting_lab.sweeps.database.PAUSE", 0.2)
    monkeypatch.setattr(SQLiteDialect_pysqlite, "is_disconnect", lambda _, error, *more: "locked" in str(error))
    path = tmp_path / "trials.db"
    study = open_study(open_storage(tmp_path, f"sqlite:///{path}", ""), tmp_path, "sizes")
    study.ask()
    holding: list[threading.Thread] = []

    def hold_at_query(_: object, __: object, statement: str, *more: object) -> None:
        if "FROM trials" in statement and not holding:
            holding.append(hold(path, 1))

    event.listen(Engine, "before_cursor_execute", hold_at_query)
    try:
        assert len(study.get_trials()) == 1, "Optuna asks again in the transaction that the lost connection has ended"
    finally:
        event.remove(Engine, "before_cursor_execute", hold_at_query)
    assert holding


class Repeating(InMemoryStorage):
    """Begins each trial twice, as a database does whose first answer was lost."""

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        super().create_new_trial(study_id, template_trial)
        return super().create_new_trial(study_id, template_trial)


def test_a_trial_whose_beginning_was_repeated_is_one_trial(tmp_path: Path) -> None:
    storage: BaseStorage = Repeating()
    study = open_study(storage, tmp_path, "sizes")
    setting: dict[str, Any] = {"setting": {"size": 40, "seed": 0}}
    trials = [begin_trial(storage, study, setting) for _ in range(2)]
    assert [trial.number for trial in trials] == [0, 2]
    running, fail = TrialState.RUNNING, TrialState.FAIL
    assert [trial.state for trial in study.trials] == [running, fail, running, fail]
    assert trials[1].user_attrs["setting"] == setting["setting"]
