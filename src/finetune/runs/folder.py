"""The run's folder: made once, never trained into twice, explaining itself."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shlex
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune.atomic import is_ours, not_written, write_atomically, write_sealed
from finetune.cells import table_of
from finetune.errors import Interrupted, RequestError, RunError, shown
from finetune.runs.settings import resumed_by
from finetune.say import open_log
from finetune.signals import Signal, signals

if TYPE_CHECKING:  # it brings torch, and a used folder is to be told at once
    from finetune.data.images import BadImage

LATEST = Path("outputs") / "latest"
PLAN = "plan.json"  # the list of all jobs, in a sweep's folder
LOG = "log.txt"  # what the terminal said of a run
FOLDS = "folds"  # in a run's folder: the runs of its folds
PHASES = "phases"  # the same of its phases
REFERENCE = "reference.safetensors"  # what the head reads of some training images
LOCK = ".lock"  # in a folder while a process writes there


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, of a phase the run's, while this process writes; RequestError if another does."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder.parents[1] if is_phase(folder, FOLDS) else folder) / LOCK
    began = (folder / "settings.json").exists()
    with _opened(path) as file:
        if not _locked(file, path):
            file.seek(0)
            who = file.read(300).decode("utf-8", "replace") or "another process"
            raise RequestError(f"{folder}: expected a folder that nobody writes to; {who} does at the moment")
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}".encode())
            file.flush()
            yield
        except RequestError:
            if not (began or (folder / "skipped.csv").exists() or has_trained(folder)):
                for name in ("settings.json", LOG):  # nothing is to be resumed
                    (folder / name).unlink(missing_ok=True)
            raise
        finally:
            path.unlink(missing_ok=True)
            for empty in made:  # what was asked for was wrong
                with suppress(OSError):
                    empty.rmdir()


def _opened(path: Path) -> BinaryIO:
    """A lock's file; RequestError where something else, or a link to something, has its name."""
    with suppress(IsADirectoryError, io.UnsupportedOperation):  # of a pipe
        try:
            return open(path, "a+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
    raise RequestError(f"{path}: expected a file of ours, and no link; remove it")


def _locked(file: BinaryIO, path: Path) -> bool:
    """Lock an open file, unless somebody has; one that has been removed meanwhile is nobody's lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # not every file system has locks
        return True


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Signals and errors of the system while a run works in its folder, as errors that say how to resume."""
    code, reason = 0, ""
    try:
        with signals():
            yield
    except Signal as received:  # while preparing or finishing
        code, reason = 128 + received.number, f"interrupted by {signal.Signals(received.number).name}"
    except Interrupted as error:
        code, reason = error.exit_code, str(error)
    except OSError as error:
        if not is_ours(error, folder):
            raise
        raise RunError(not_written(folder, error)) from None
    if code:
        if (folder / "settings.json").exists():
            reason += f"; {resumed_by(folder)} goes on"
        raise Interrupted(reason, code)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's; Hydra's own file is not there from the beginning."""
    return any((folder / name).is_file() for name in (PLAN, "multirun.yaml"))


def sweep_of(folder: Path) -> Path | None:
    """The sweep that a job's folder, or one in it, is within; None where it is within none."""
    return next(filter(is_sweep, folder.parents), None)


def pointer(run: str) -> Path | None:
    """The file that names the newest run, where a name means that: `latest`, or the file's own path."""
    path = Path(run)
    if run == "latest" and not path.exists():
        return LATEST
    return path if path.parts[-2:] == LATEST.parts and path.is_file() else None


def find_run(run: str) -> Path:
    """The folder that `RUN` means, a path or `latest`; raises RequestError of none, or one of no run."""
    folder, where = Path(run), ""
    if file := pointer(run):
        if not file.exists():
            raise RequestError(f"latest: expected {file}, which the first run writes; there is none here")
        try:  # its path is seen from where that run was started
            folder = file.parents[1] / os.fsdecode(file.read_bytes()).strip()
        except (OSError, ValueError) as error:
            raise RequestError(f"{file}: expected the path of the newest run ({error})") from None
        where = f", which {file} names"
    if not (folder / "settings.json").is_file():
        what = "settings.json in it" if folder.is_dir() else "there is no such folder"
        raise RequestError(f"{folder}{where}: expected the folder of a run, {what}")
    return folder


def refuse_used(folder: Path) -> None:
    """Raise RequestError where a folder already holds a run, or what a run would write over."""
    wrong = f"hydra.run.dir={folder}: expected a new folder; this one holds"
    if has_trained(folder):
        raise RequestError(f"{wrong} a run's checkpoints")
    for name in ("report.html", "metrics.csv", "predictions.csv"):  # it would write over them
        if (folder / name).is_file() and not (folder / "settings.json").exists():
            raise RequestError(f"{wrong} {name} of no run")


def has_trained(folder: Path) -> bool:
    """Whether there is a checkpoint of a run, or of one of its folds or phases."""
    return any(any(folder.glob(f"{part}checkpoints/*.ckpt")) for part in ("", f"{FOLDS}/*/", f"{PHASES}/*/"))


def is_phase(folder: Path, *others: str) -> bool:
    """Whether a folder is one of a run's phases, or of `others`, and not a run's in a folder of that name."""
    return folder.parent.name in (PHASES, *others) and (folder.parents[1] / "settings.json").is_file()


def phase_before(folder: Path) -> Path | None:
    """The phase that this one starts from; None of the first, and of a run by itself."""
    first = not is_phase(folder) or folder.name == "0"
    return None if first else folder.with_name(str(int(folder.name) - 1))


def drop_unused(folder: Path) -> None:
    """Remove a folder that holds nothing but what Hydra writes first, and those above that then are empty."""
    here, folder = Path.cwd(), folder.resolve()
    if folder != here and {path.name for path in folder.glob("*")} <= {".hydra", "multirun.yaml"}:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others lie there
            for above in folder.parents:
                if here in above.parents:
                    above.rmdir()


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Write what a run was asked for: from here on it can be resumed."""
    if (folder / "settings.json").exists():  # a run that came to no checkpoint
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        for name in ("metrics.csv", "summary.json", "skipped.csv"):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / "settings.json", settings)


def start(folder: Path, skipped: Sequence[BadImage], latest: bool = True) -> str | None:
    """Write what is known when settings and data are found valid, and make this run the latest.

    Returns: why it is not, where the working folder cannot be written to.
    """
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be made: {error.strerror}") from None
    if skipped:
        list_bad(folder, skipped)
    if not latest or is_phase(folder):
        return None
    try:
        LATEST.parent.mkdir(exist_ok=True)
        write_atomically(LATEST, os.fsencode(f"{folder}\n"))
    except (OSError, RunError) as error:
        return f"latest does not mean this run ({error})"
    return None


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a run's folder that reports and answers are made of."""
    tables = [folder / name for name in ("metrics.csv", "predictions.csv", "skipped.csv", REFERENCE)]
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in tables if one.is_file()}


def check_tables(folder: Path, known: Mapping[str, str]) -> None:
    """Raise RequestError where one of these tables is not what the summary says; older ones say nothing."""
    now = digests(folder)
    for name in known:
        if now.get(name) != known[name]:
            run = shlex.quote(str(folder.parents[1] if is_phase(folder) else folder))
            raise RequestError(
                f"{folder / name}: expected what the run wrote; it has been changed (SHA-256); delete"
                f" {folder / 'summary.json'}, and finetune resume {run} writes it again"
            )


def list_bad(folder: Path, images: Sequence[BadImage]) -> None:
    """Write skipped.csv: the path of each image that cannot be used, and why."""
    write_atomically(
        folder / "skipped.csv", table_of([["path", "reason"], *([bad.path, bad.reason] for bad in images)])
    )


def give_reason(folder: Path, error: BaseException) -> None:
    """Say in summary.json why a run that had started did not finish."""
    interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
    if (folder / "settings.json").exists() and not isinstance(error, RequestError):
        reason = str(error) or type(error).__name__
        status = "interrupted" if interrupted else "failed"
        with suppress(RequestError, RunError, OSError):  # the disk may be what failed
            with open_log(folder / LOG) as log:
                log.write(f"error: {shown(reason)}\n")
            write_sealed(folder / "summary.json", {"status": status, "reason": reason})
