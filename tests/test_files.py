"""Files as their user has them: modes, links, what is no file; archives and JSON that say more than there is."""

import os
import signal
import socket
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyrovae as pv
from pyrovae._files import check_stored, locked, replaced
from pyrovae._graph import trace
from pyrovae._interrupt import uninterrupted
from pyrovae._untrusted import fits, is_deep, parsed
from pyrovae.datasets import _files as data_files
from tests.models import binary


def model(path: Path) -> None:
    torch.manual_seed(0)
    pv.VAE((6,), 2, hidden=(3,)).save(path)


def result(path: Path) -> None:
    torch.manual_seed(0)
    pv.log_marginal(pv.VAE((6,), 2, hidden=(3,)), binary(4), num_samples=5, progress=False).save(path)


def plain(path: Path) -> None:
    with replaced(path) as temporary:
        temporary.write_text("new")


WRITERS: dict[str, Callable[[Path], None]] = {"model": model, "result": result, "file": plain}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return WRITERS[request.param]


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0o022)
    yield lambda value: os.umask(value) and None
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_new_files_have_the_mode_that_the_user_wants(mask: int, write, umask, tmp_path: Path) -> None:
    umask(mask)
    write(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o666 & ~mask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o664, 0o755])
def test_files_keep_their_mode(kept: int, write, umask, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(kept)
    write(path)
    assert mode(path) == kept
    assert path.read_bytes() != b"old"


def test_what_replaces_a_private_file_is_private_as_it_is_written(umask, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(0o600)
    with replaced(path) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("secret")


def test_checkpoints_have_the_mode_that_the_user_wants(umask, tmp_path: Path) -> None:
    umask(0o077)
    pv.fit(pv.VAE((6,), 2, hidden=(3,)), binary(10), epochs=1, checkpoint=tmp_path, progress=False, device="cpu")
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to anything")
def test_files_that_may_not_be_written_stay(write, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="may not be written: change its mode, or pass another path"):
        write(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("exists", [True, False])
def test_links_stay_and_what_they_lead_to_is_replaced(exists: bool, write, umask, tmp_path: Path) -> None:
    target, link, second = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "second"
    target.parent.mkdir()
    if exists:
        target.write_text("old")
        target.chmod(0o640)
    link.symlink_to(target)
    second.symlink_to("link")
    write(second)
    assert link.is_symlink()
    assert second.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() != b"old"
    assert mode(target) == (0o640 if exists else 0o644)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "second", "target", "there"]


def odd(kind: str, path: Path) -> None:
    match kind:
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case "a device":
            path.symlink_to("/dev/null")
        case "a link that leads nowhere":
            path.symlink_to(path)


ODD = ["a folder", "a pipe", "a socket", "a device", "a link that leads nowhere"]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_not_replaced(kind: str, write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("odd")
    odd(kind, path)
    before = os.lstat(path)
    with pytest.raises(ValueError, match=f"path must be that of a file; odd is .*{kind}.*: pass another"):
        write(path)
    assert os.lstat(path).st_ino == before.st_ino
    assert list(tmp_path.iterdir()) == [tmp_path / "odd"]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [pv.load, pv.VAE.load, pv.evaluation.Result.load])
def test_what_is_no_file_is_not_opened(kind: str, read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd(kind, Path("odd"))
    with pytest.raises(ValueError, match=f"odd is .*{kind}.*, not the file of a (model|result): pass the path of one"):
        read("odd")
    with pytest.raises(FileNotFoundError, match=r"there is no (model|result) at none"):
        read("none")


@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_or_a_lock_that_is_no_file(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    vae, x = pv.VAE((6,), 2, hidden=(3,)), binary(10)
    lock, named = Path("a"), Path("b")
    lock.mkdir()
    named.mkdir()
    odd(kind, lock / ".lock")
    odd(kind, named / f"checkpoint-{1:010d}-{0:016x}.pt")
    with pytest.raises(pv.CheckpointError, match=r"no checkpoints can be written to a: a/\.lock is"):
        pv.fit(vae, x, epochs=1, checkpoint=lock, progress=False, device="cpu")
    with (
        pytest.warns(UserWarning, match=f"is passed over: .* is .*{kind}.*, not the file of a checkpoint"),
        pytest.raises(pv.CheckpointError, match="none of the 1 checkpoint"),
    ):
        pv.fit(vae, x, epochs=1, checkpoint=named, progress=False, device="cpu")


def test_downloads_have_the_mode_that_the_user_wants(umask, tmp_path: Path, monkeypatch) -> None:
    """They are written by somebody else, for himself alone."""
    import pooch

    def retrieve(url: str, known_hash: None, path: Path, fname: str, progressbar: bool) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(b"data")
        (path / fname).chmod(0o600)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setenv("PYROVAE_CACHE", str(tmp_path))
    source = data_files.Source("a/b.bin", ("url",), lambda content: {}, {})
    assert data_files.read(source, root=None, download=True, progress=False) == {}
    assert mode(tmp_path / "a" / "b.bin") == 0o644
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]


# -- what archives, JSON and annotations say -----------------------------------------------------------------------


def test_archives_hold_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"0" * 1000)
    check_stored(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b", b"0" * 1000)
    with pytest.raises(ValueError, match="it is compressed or encrypted"):
        check_stored(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"0")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"1")
    with pytest.raises(ValueError, match="two entries of one name"):
        check_stored(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"0" * 1000)
        archive.writestr("b", b"0" * 1000)
        archive.infolist()[1].header_offset = 0  # one in the other
        archive.infolist()[0].file_size = archive.infolist()[0].compress_size = 2000
    with pytest.raises(ValueError, match="it says that it holds more than there is"):
        check_stored(path)


@pytest.mark.parametrize(
    "text", ["[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, "[" * 10**5, "[" * 10**5 + "]" * 10**5]
)
def test_json_that_is_deep_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"it is nested too deeply|Expecting"):
        parsed(text)
    assert parsed("[" * 60 + "]" * 60)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', "NaN", "[Infinity]", "-Infinity", "{", ""]
)
def test_json_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"an object has a name twice|is no JSON|Expecting"):
        parsed(text)


def test_things_that_hold_each_other_several_times_over_are_deep() -> None:
    held: Any = []
    for _ in range(40):
        held = [held, held]
    assert is_deep(held, 10**6)
    assert not is_deep([[1, 2], {"a": (3,)}], 7)
    assert is_deep([[1, 2], {"a": (3,)}], 5)
    own: list[Any] = []
    own.append(own)
    assert is_deep(own, 10**6)


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (1.0, int, False),
        (None, int | None, True),
        ("a", int | None, False),
        ((1, 2), tuple[int, ...], True),
        ((1, None), tuple[int, ...], False),
        ((1, None), int | tuple[int | None, ...] | None, True),
        ((1, "a"), tuple[int, str], True),
        ((1,), tuple[int, str], False),
        ({"a": 1.0}, dict[str, float], True),
        ({1: 1.0}, dict[str, float], False),
        ([{"a": 1}], list[dict[str, float]], True),
        ([{"a": "b"}], list[dict[str, float]], False),
        ({"a": object()}, dict[str, Any], True),
    ],
)
def test_values_are_what_annotations_ask_for(value: Any, hint: Any, right: bool) -> None:
    assert fits(value, hint) is right


def test_a_lock_is_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lock"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for _ in range(2):
        with locked(path):
            for other in (path, tmp_path / "link" / "lock"):
                with pytest.raises(BlockingIOError), locked(other):
                    pass


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_waits_for_the_tracer() -> None:
    """And comes right after it, once, whatever the tracer says; handlers are as they were."""
    done = []

    def traced(x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        done.append("traced")
        return x + 1

    def failing(x: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        done.append("failed")
        raise TypeError

    for function in (traced, failing):
        with pytest.raises(KeyboardInterrupt):
            trace(function, torch.zeros(2))
    assert done == ["traced", "failed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert trace(lambda x: x + 1, torch.zeros(2))(torch.ones(2)).tolist() == [2.0, 2.0]  # and so goes the notebook on


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_waits_for_the_compiler(monkeypatch) -> None:
    from pyrovae import _code

    def machine_code(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        done.append(1)
        return lambda *tensors: tensors

    done: list[int] = []
    monkeypatch.setattr(_code, "machine_code", machine_code)
    module = trace(lambda x: [x.sin() * 3.25], torch.zeros(5))
    with pytest.raises(KeyboardInterrupt):
        _code.compiled(module, torch.zeros(5))
    assert done == [1]


class Interrupted(pv.VAE):
    """Whoever builds it presses Ctrl-C."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_is_not_taken_for_damage(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, lambda number, frame: None)
    Interrupted((6,), 2, hidden=(3,)).save(tmp_path / "m")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        Interrupted.load(tmp_path / "m")


@pytest.mark.usefixtures("_ctrl_c")
def test_every_signal_that_python_heeds_waits_and_no_other() -> None:
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in (signal.SIGALRM, signal.SIGUSR1)}
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with uninterrupted():
            for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
                signal.raise_signal(number)
            assert came == []
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert sorted(came) == sorted([signal.SIGALRM, signal.SIGUSR1])
    finally:
        for number, handler in {**before, signal.SIGUSR2: ignored}.items():
            signal.signal(number, handler)


def test_other_threads_trace_as_they_are() -> None:
    found: list[Any] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        found.append(trace(lambda x: x + (signal.getsignal(signal.SIGINT) is before), torch.zeros(2))(torch.zeros(2)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].tolist() == [1.0, 1.0]


class Of:
    """A path-like object."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


@pytest.mark.parametrize(
    "bad", ["a\0b", "n" * 256, "n" * 300 + "/b", "\ud800", Of(b"a"), Of(3), "file/b", "file/b/c", "x/" * 2500]
)
def test_paths_that_no_file_can_have_are_refused_by_name(
    bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises((ValueError, TypeError), match=r"^path [^\n]*$"):
        pv.VAE((6,), 2, hidden=(3,)).save(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["n" * 250, "é" * 127, "n" * 255])
def test_names_may_be_as_long_as_the_system_allows(name: str, tmp_path: Path) -> None:
    saved = pv.VAE((6,), 2, hidden=(3,)).save(tmp_path / name)
    assert isinstance(pv.load(saved), pv.VAE)
