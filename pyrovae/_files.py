"""Files that are never half-written, read only where they are what they should be, and locked by one process alone."""

import os
import secrets
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_START = 200  # bytes of a file's name that the temporary one has, too: systems take 255 in all
_LOCKED: set[str] = set()  # by this process, whose threads an operating system does not tell apart
_LOCKING = threading.Lock()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write, flushed to the disk and renamed to ``path`` at the end: all of it or
    nothing, also when the power fails. Missing folders are made.

    The mode of a file that is there is kept, that of a new one is the user's (umask). A link stays: what it leads to is
    replaced.

    Raises:
        ValueError: ``path`` is there, and no regular file, or a part of it is a file.
        PermissionError: it is there, and may not be written.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        raise ValueError(f"path must be that of a file; {path} is {_kind(target)}: pass another.")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} may not be written: change its mode, or pass another path.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"path must be in a folder; a part of {path} is a file: pass another.") from error
    start = os.fsdecode(os.fsencode(target.name)[:_MAX_START])
    temporary = target.with_name(f"{start}{secrets.token_hex(4)}.part")
    new = 0o600 if target.exists() else 0o666  # of what replaces a private file nobody reads a part
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, new))
    mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, mode)  # whatever writes may have put another file there
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk, too
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_regular(path: Path, what: str) -> None:
    """Look whether there is a file to read, without opening it: a pipe would wait, a device never end.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is no regular file.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no {what} at {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is {_kind(path)}, not the file of a {what}: pass the path of one.")


def check_stored(path: Path) -> None:
    """Raise a ``ValueError`` unless a zip archive holds what it says, as it is: of what is compressed, a small file
    could hold more than there is memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:  # or of several disks, or a later version
        raise ValueError(f"it is no zip archive, or a damaged one: {error}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ValueError("it is compressed or encrypted.")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("it holds two entries of one name.")
    if sum(max(entry.file_size, entry.compress_size) for entry in entries) > path.stat().st_size:
        raise ValueError("it says that it holds more than there is.")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a file, made where it is missing, to oneself. The lock ends with the block or with the process, however that
    ends; where a file system has no locks, there is none.

    Raises:
        BlockingIOError: another process, or another thread of this one, has it.
        OSError: the file cannot be made.
        ValueError: it is no regular file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        check_regular(path, "lock")
    name = os.path.realpath(path)
    with _LOCKING:
        if name in _LOCKED:
            raise BlockingIOError(f"{path} is locked by this process.")
        _LOCKED.add(name)
    try:
        with open(name, "ab") as file:
            _lock(file.fileno())
            yield
    finally:
        _LOCKED.discard(name)


def _lock(handle: int) -> None:
    """Of the process, not of the open file, which processes that it starts would hold on to after its end."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        return
    import errno
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(*error.args) from error
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise


def _kind(path: Path) -> str:
    """What is there that is no file."""
    kinds = {"a folder": path.is_dir, "a pipe": path.is_fifo, "a socket": path.is_socket}
    return next((name for name, test in kinds.items() if test()), "a device or a link that leads nowhere")
