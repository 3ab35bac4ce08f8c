"""Files of the data sets: found in a folder or the cache, or downloaded, and always verified."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyrovae._files import replaced


@dataclass(frozen=True)
class Source:
    """A file of a data set, where to find it and what it holds.

    Attributes:
        path: where it lies under ``PYROVAE_DATA`` or the cache.
        urls: where it can be downloaded, tried in order.
        decode: from the file's bytes to named arrays; raises on bytes that are not such a file.
        sha256: of each array's bytes. The content is checked, not the file: archives may be recompressed.
    """

    path: str
    urls: tuple[str, ...]
    decode: Callable[[bytes], dict[str, np.ndarray]]
    sha256: dict[str, str]


class DamagedFile(ValueError):
    """An error for a data file that does not hold what it should."""


def cache_dir() -> Path:
    """The folder for downloads: ``PYROVAE_CACHE``, or the platform's cache folder."""
    import pooch

    return Path(os.environ.get("PYROVAE_CACHE") or pooch.os_cache("pyrovae"))


def read(
    source: Source, *, root: str | os.PathLike[str] | None, download: bool, progress: bool
) -> dict[str, np.ndarray]:
    """Read the arrays of a source: from ``root`` (or ``PYROVAE_DATA``), the cache, or a download into the cache.

    Raises:
        FileNotFoundError: the file is nowhere and may not, or cannot, be downloaded.
        DamagedFile: the file is there but its content is not what it should be.
    """
    root = root or os.environ.get("PYROVAE_DATA")
    folders = [Path(root)] if root else []
    for folder in [*folders, cache_dir()]:
        if (folder / source.path).is_file():
            return verify(source, folder / source.path)
    if not download:
        places = " or ".join(str(f / source.path) for f in [*folders, cache_dir()])
        raise FileNotFoundError(
            f"{places} is missing. Pass download=True, or set PYROVAE_DATA to a folder that has it."
        )
    return _download(source, cache_dir() / source.path, folders, progress)


def verify(source: Source, path: Path) -> dict[str, np.ndarray]:
    """Decode a file and compare every array with its SHA-256."""
    try:
        arrays = source.decode(path.read_bytes())
    except Exception as error:  # every decoder has its own ways to fail
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}). Delete it and load again.") from error
    for name, expected in source.sha256.items():
        found = hashlib.sha256(np.ascontiguousarray(arrays[name]).tobytes()).hexdigest()
        if found != expected:
            raise DamagedFile(
                f"{path} is damaged: the SHA-256 of its {name} is {found[:16]}…, not {expected[:16]}…. "
                f"Delete it and load again."
            )
    return arrays


def _download(source: Source, target: Path, searched: list[Path], progress: bool) -> dict[str, np.ndarray]:
    """Download a source's file, verify it, and only then put it in place."""
    import pooch

    failures = []
    waiting = target.with_name(target.name + f".{os.getpid()}.part")
    for url in source.urls:
        try:
            pooch.retrieve(url, known_hash=None, path=waiting.parent, fname=waiting.name, progressbar=progress)
            arrays = verify(source, waiting)
            with replaced(target) as temporary:  # with the user's mode, which pooch does not give
                shutil.copyfile(waiting, temporary)
            return arrays
        except Exception as error:  # no network, a moved file, a damaged one: try the next address
            failures.append(f"{url}: {type(error).__name__}: {error}")
        finally:
            waiting.unlink(missing_ok=True)
    raise FileNotFoundError(
        f"{target.name} could not be downloaded. Set PYROVAE_DATA to a folder with {source.path}. Tried:\n  "
        + "\n  ".join([*(str(folder / source.path) for folder in searched), *failures])
    )
