"""Data sets: splits, binarisation, hashes; files found, downloaded, damaged or missing."""

import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

import pyrovae as pv
from pyrovae.datasets import _files as files
from pyrovae.datasets import _sources as sources
from pyrovae.datasets._files import DamagedFile, Source

SIZES = {
    "digits": ((1297, 200, 300), (8, 8)),
    "mnist": ((50_000, 10_000, 10_000), (28, 28)),
    "fashion_mnist": ((50_000, 10_000, 10_000), (28, 28)),
    "caltech101_silhouettes": ((4100, 2264, 2307), (28, 28)),
    "frey_faces": ((1565, 200, 200), (28, 20)),
}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def source(array: np.ndarray, *urls: str) -> Source:
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return Source("set/array.gz", urls, sources._decode_idx, {"array": digest})


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PYROVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path):
    """A folder served over HTTP on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_digits_are_offline_and_split() -> None:
    data = pv.datasets.load("digits")
    assert (len(data.train), len(data.val), len(data.test)) == SIZES["digits"][0]
    assert data.event_shape == (64,)
    assert data.image_shape == (1, 8, 8)
    assert data.train.dtype == torch.float32
    assert sorted((data.train.unique() * 16).tolist()) == list(range(17))
    together = torch.cat([data.train, data.val, data.test])
    assert len(together.unique(dim=0)) == 1797
    assert pv.datasets.load("Digits", flatten=False).event_shape == (1, 8, 8)
    assert [len(data.labels[s]) for s in ("train", "val", "test")] == [1297, 200, 300]


def test_content_is_pinned() -> None:
    """A changed split or draw would silently change every published number."""
    assert pv.datasets.load("digits").hash == "15392087e3a56e09"
    assert pv.datasets.load("digits", binarize="static").hash == "479a6182e054d0a3"


@pytest.mark.parametrize("name", [n for n in SIZES if n != "digits"])
def test_real_data(name: str, real_data: Path) -> None:
    if not any(real_data.glob(f"{name.replace('_m', '-m')}*")):
        pytest.skip(f"{name} is not in {real_data}")
    data = pv.datasets.load(name, root=real_data, download=False, flatten=False)
    sizes, image = SIZES[name]
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert data.image_shape == (1, *image)
    assert data.event_shape == (1, *image)
    assert data.train.min() >= 0
    assert data.train.max() <= 1
    if name == "caltech101_silhouettes":
        assert set(data.train.unique().tolist()) == {0.0, 1.0}
        assert data.train[:, :, :2].mean() < 0.2 < data.train[:, :, 12:16, 12:16].mean()  # white objects, centred
    if name == "frey_faces":
        assert pv.distributions.Levels(torch.zeros(256)).support.check(data.train).all()
    else:
        assert [len(data.labels[s]) for s in ("train", "val", "test")] == list(sizes)


def test_binarisation() -> None:
    plain, static, dynamic, threshold = (
        pv.datasets.load("digits", binarize=b) for b in (None, "static", "dynamic", "threshold")
    )
    for data in (static, threshold):
        for x in (data.train, data.val, data.test):
            assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(threshold.test, (plain.test > 0.5).float())
    torch.testing.assert_close(dynamic.train, plain.train)
    draws = torch.stack([dynamic.batch_transform(dynamic.train[:200]) for _ in range(400)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = dynamic.train[:200]
    error = (p * (1 - p) / 400).sqrt()
    assert ((draws.mean(0) - p).abs() <= 5 * error).all()  # 12 800 pixels
    assert static.batch_transform is None
    assert torch.equal(dynamic.test, static.test)
    assert torch.equal(dynamic.val, static.val)
    # Draws have the intensities as their mean.
    p, x = plain.test.flatten().double(), static.test.flatten().double()
    z = (x - p).sum() / (p * (1 - p)).sum().sqrt()
    assert abs(z) < 4
    assert torch.equal(x[p == 0], p[p == 0])
    assert torch.equal(x[p == 1], p[p == 1])


def test_seed_of_binarisation_and_hash() -> None:
    a, b, c = (pv.datasets.load("digits", binarize="static", seed=s) for s in (0, 0, 1))
    assert a.hash == b.hash != c.hash
    result = pv.log_marginal(pv.VAE((64,), 2, hidden=(8,)), a.test, num_samples=2, progress=False)
    again = pv.log_marginal(pv.VAE((64,), 2, hidden=(8,)), c.test, num_samples=2, progress=False)
    assert result.provenance.data_hash != again.provenance.data_hash


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'mnst'. Did you mean 'mnist'"):
        pv.datasets.load("mnst")
    with pytest.raises(ValueError, match="binarize must be"):
        pv.datasets.load("digits", binarize="sometimes")


def test_found_in_a_folder_before_the_cache(array, cache, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "mine" / "set"
    folder.mkdir(parents=True)
    (folder / "array.gz").write_bytes(idx(array))
    for kwargs in ({"root": tmp_path / "mine"}, {"root": None}):
        if kwargs["root"] is None:
            monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "mine"))
        found = files.read(source(array), download=False, progress=False, **kwargs)
        np.testing.assert_array_equal(found["array"], array)


def test_downloads_once_into_the_cache(array, cache, server) -> None:
    folder, url = server
    (folder / "array.gz").write_bytes(idx(array))
    wanted = source(array, f"{url}/gone.gz", f"{url}/array.gz")  # the first address fails
    np.testing.assert_array_equal(files.read(wanted, root=None, download=True, progress=False)["array"], array)
    (folder / "array.gz").unlink()
    np.testing.assert_array_equal(files.read(wanted, root=None, download=True, progress=False)["array"], array)
    assert [p.name for p in (cache / "set").iterdir()] == ["array.gz"]


def test_recompressed_archives_are_accepted(array, cache) -> None:
    (cache / "set").mkdir(parents=True)
    header = struct.pack(">HBB", 0, 8, 3) + struct.pack(">3I", *array.shape)
    (cache / "set" / "array.gz").write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1, mtime=7))
    np.testing.assert_array_equal(files.read(source(array), root=None, download=False, progress=False)["array"], array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[: len(c) // 2],
        lambda c: b"<html>gone</html>",
        lambda c: b"",
        lambda c: idx(np.zeros((5, 4, 3), np.uint8)),
    ],
    ids=["truncated", "a web page", "empty", "other content"],
)
def test_damaged_files_are_named_and_damaged_downloads_are_not_kept(damage, array, cache, server) -> None:
    folder, url = server
    (folder / "array.gz").write_bytes(damage(idx(array)))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded. Set PYROVAE_DATA(?s:.*)DamagedFile"):
        files.read(source(array, f"{url}/array.gz"), root=None, download=True, progress=False)
    assert list((cache / "set").iterdir()) == []
    (cache / "set" / "array.gz").write_bytes(damage(idx(array)))
    with pytest.raises(DamagedFile, match=r"array.gz is damaged.* Delete it and load again"):
        files.read(source(array), root=None, download=True, progress=False)


def test_missing_files_say_where_they_were_looked_for(array, cache, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"set/array.gz or .*cache/set/array.gz is missing. Pass download=True"):
        files.read(source(array), root=tmp_path, download=False, progress=False)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded"):
        files.read(source(array, "http://127.0.0.1:9/array.gz"), root=None, download=True, progress=False)


def test_the_original_frey_file_is_read_too(tmp_path) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (7, 28, 20), dtype=np.uint8)
    scipy.io.savemat(tmp_path / "frey.mat", {"ff": faces.reshape(7, 560).T})
    np.savez(tmp_path / "frey.npz", images=faces)
    for name in ("frey.mat", "frey.npz"):
        np.testing.assert_array_equal(sources._decode_frey((tmp_path / name).read_bytes())["images"], faces)
