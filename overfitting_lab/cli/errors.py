"""Turn an exception into a message and an exit status."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from overfitting_lab.callbacks.limits import LimitError
from overfitting_lab.callbacks.logger import TENSORBOARD, RunLogger
from overfitting_lab.callbacks.recovery import StoppedError
from overfitting_lab.cli.failures import REPORTED, explain, is_defect, keep_trace, wants_trace
from overfitting_lab.cli.screen import screen
from overfitting_lab.distributed.last_words import say
from overfitting_lab.runs import UsageError
from overfitting_lab.runs.files import RunFiles, resume_command
from overfitting_lab.runs.notes import discard_notes, note

USAGE = 2  # exit status for an error of the command line
INTERRUPTED, PIPE_CLOSED, TERMINATED = 130, 141, 143  # a shell's exit status for Ctrl-C, SIGPIPE and SIGTERM


class Report:
    """Facts about the command for the report of an error."""

    logger: RunLogger | None = None  # of the trained run; the trace goes into its folder


@contextmanager
def reported_errors(needs_screen: bool = False) -> Iterator[Report]:
    """Turn an error that a person can fix into one message and exit status 1; a defect of the project keeps its trace.

    The command continues without its screen, unless it ``needs_screen``: then a closed pipe ends it silently. A command
    that prints its configuration needs the screen.
    """
    prints = any(flag.startswith("--print_config") for flag in sys.argv[1:])
    discard_notes()
    threads, threading.excepthook = threading.excepthook, _note_writers
    try:
        with screen(needs_screen or prints):
            yield from _reported(Report())
    finally:
        threading.excepthook = threads


def _note_writers(failure: threading.ExceptHookArgs) -> None:
    """Note the failure of a TensorBoard thread without its trace. Report any other thread's as Python does."""
    if type(failure.thread).__module__.startswith("tensorboard") and isinstance(failure.exc_value, Exception):
        note(TENSORBOARD, failure.exc_value)
    else:
        threading.__excepthook__(failure)


def _reported(report: Report) -> Iterator[Report]:
    try:
        yield report
        sys.stdout.flush()
    except StoppedError as error:
        _leave(str(error), error.status)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except SIGTERMException:  # outside training, where Recovery handles signals
        folder = report.logger.folder_with_files() if report.logger else None
        saved = folder and RunFiles(folder).last.is_file()
        _leave(
            "stopped by SIGTERM" + (f"; resume with: {resume_command(folder)}" if folder and saved else ""), TERMINATED
        )
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit status 1
            _leave("interrupted", INTERRUPTED)
        if not error.code:
            _flush()
        raise
    except REPORTED as error:
        _leave(f"error: {error}", USAGE if isinstance(error, LimitError | UsageError) else 1)
    except BrokenPipeError as error:
        if error.filename is None and error.filename2 is None:  # standard output is closed, and the command needs it
            sys.exit(PIPE_CLOSED)
        _leave_or_raise(error, report)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            message = "the GPU's memory cannot hold a step: try a smaller --data.batch_size, or more devices"
        elif str(error).startswith("Early stopping conditioned on metric"):
            message = "--trainer.callbacks.monitor names a metric that was not logged"
        elif type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            message = "torch cannot compile the network here: install what it names, or leave --compile out"
        else:
            _leave_or_raise(error, report)
        reason = str(error).partition("\n")[0].partition(" Including non-PyTorch memory")[0]
        _leave(f"error: {message}\n{reason}{keep_trace(error, report.logger)}", 1)
    except Exception as error:
        _leave_or_raise(error, report)


def _leave_or_raise(error: Exception, report: Report) -> NoReturn:
    """Report an error whose cause lies outside of this project. Raise a defect of the project again."""
    trace = keep_trace(error, report.logger)
    if is_defect(error) or wants_trace():
        raise error
    _leave(f"error: {explain(error)}{trace}", 1)


def _flush() -> None:
    """Write what was printed. Leave with an error if the command needs the screen, and nobody can read it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        _leave(f"error: standard output: {error.strerror}", 1)


def _leave(message: str, status: int) -> NoReturn:
    say(message)
    sys.exit(status)
