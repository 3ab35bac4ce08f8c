"""The data sets' files, and images in [0, 1] with fixed splits from each."""

import gzip
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pyrovae.datasets._files import Source

Splits = dict[str, np.ndarray]
Read = Callable[[Source], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Raw:
    """Images ``(N, H, W)`` in [0, 1] by split, and labels and factors ``(N, F)`` where the data set has them."""

    images: Splits
    labels: Splits
    factors: Splits = field(default_factory=dict)
    factor_names: tuple[str, ...] = ()


def digits(read: Read) -> Raw:
    """1797 handwritten digits of 8×8 pixels in 17 levels, from scikit-learn (UCI): 1297/200/300, shuffled."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    data = load_digits()
    parts = shuffled(len(data.images), 200, 300)
    return _pick((data.images / 16).astype(np.float32), data.target, parts)


def mnist(read: Read) -> Raw:
    """MNIST (LeCun et al.): 50 000/10 000/10 000, the last 10 000 training images being for validation."""
    return _idx_dataset(read, "mnist")


def fashion_mnist(read: Read) -> Raw:
    """Fashion-MNIST (Xiao et al. 2017), split like MNIST."""
    return _idx_dataset(read, "fashion-mnist")


def caltech101_silhouettes(read: Read) -> Raw:
    """Caltech-101 silhouettes of 28×28 pixels, split 1 (Marlin et al. 2010): 4100/2264/2307, objects white."""
    arrays = read(_CALTECH)
    splits = ("train", "val", "test")
    return Raw(
        # The file is column-major, and black on white.
        images={s: 1.0 - arrays[f"{s}_data"].reshape(-1, 28, 28).swapaxes(1, 2).astype(np.float32) for s in splits},
        labels={s: arrays[f"{s}_labels"].ravel() for s in splits},
    )


def frey_faces(read: Read) -> Raw:
    """1965 frames of Brendan Frey's face, 28×20 pixels in 256 levels: 1565/200/200, shuffled."""
    images = read(_FREY)["images"]
    return _pick((images / 255).astype(np.float32), None, shuffled(len(images), 200, 200))


def _idx_dataset(read: Read, name: str) -> Raw:
    """Read a data set of four IDX files; the last 10 000 training images are for validation."""
    train, test = (read(_IDX[f"{name}/{part}-images-idx3"])["array"] for part in ("train", "t10k"))
    y_train, y_test = (read(_IDX[f"{name}/{part}-labels-idx1"])["array"] for part in ("train", "t10k"))
    images = {"train": train[:50_000], "val": train[50_000:], "test": test}
    return Raw(
        images={split: (x / 255).astype(np.float32) for split, x in images.items()},
        labels={"train": y_train[:50_000], "val": y_train[50_000:], "test": y_test},
    )


def shuffled(n: int, num_val: int, num_test: int) -> dict[str, np.ndarray]:
    """Indices of the three splits of n data, always the same."""
    order = np.random.default_rng(0).permutation(n)
    cuts = np.split(order, [n - num_val - num_test, n - num_test])
    return dict(zip(("train", "val", "test"), cuts, strict=True))


def _pick(images: np.ndarray, labels: np.ndarray | None, parts: dict[str, np.ndarray]) -> Raw:
    """Split images and labels by the rows of each part."""
    return Raw(
        images={split: images[rows] for split, rows in parts.items()},
        labels={} if labels is None else {split: labels[rows] for split, rows in parts.items()},
    )


def _decode_idx(content: bytes) -> dict[str, np.ndarray]:
    """Decode the IDX format: two zero bytes, a type code (8: unsigned bytes), the number of dimensions, their sizes."""
    raw = gzip.decompress(content)
    zero, code, dims = struct.unpack(">HBB", raw[:4])
    if zero != 0 or code != 8:
        raise ValueError("not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    return {"array": np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)}


def _decode_mat(content: bytes) -> dict[str, np.ndarray]:
    """Decode a MATLAB file."""
    import scipy.io

    return {name: v for name, v in scipy.io.loadmat(io.BytesIO(content)).items() if not name.startswith("__")}


def _decode_frey(content: bytes) -> dict[str, np.ndarray]:
    """Decode an .npz of images, or the original .mat with one face a column."""
    if content[:2] == b"PK":
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {"images": file["images"]}
    return {"images": np.ascontiguousarray(_decode_mat(content)["ff"].T).reshape(-1, 28, 20)}


_MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion-mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
}
_IDX_SHA256 = {
    "mnist/train-images-idx3": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "mnist/train-labels-idx1": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "mnist/t10k-images-idx3": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "mnist/t10k-labels-idx1": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    "fashion-mnist/train-images-idx3": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "fashion-mnist/train-labels-idx1": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "fashion-mnist/t10k-images-idx3": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "fashion-mnist/t10k-labels-idx1": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
_IDX = {
    path: Source(
        path=f"{path}-ubyte.gz",
        urls=tuple(f"{mirror}{file}-ubyte.gz" for mirror in _MIRRORS[name]),
        decode=_decode_idx,
        sha256={"array": sha256},
    )
    for path, sha256 in _IDX_SHA256.items()
    for name, file in [path.split("/")]
}
_CALTECH = Source(
    path="caltech101_silhouettes_28_split1.mat",
    urls=("https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat",),
    decode=_decode_mat,
    sha256={
        "train_data": "e16c69228270895ecb557b51da4924fbb288b477fd5923c533614c3159aaccc3",
        "train_labels": "ceea4e4868a5be4e79438fa7a7e3379fa03bb0aebc9753af708a9aeb3c35d44a",
        "val_data": "67a4e3a2ee22d8dce7242c3227f1bd643554efcbdb4d6cce6249832f7d623754",
        "val_labels": "facd8da6a7aeeb9cf52a9d00bd6c384cdcf8dc416ed8f812acab132f092b4846",
        "test_data": "4abecf7121e7eeb9c944d555d59efc350ef75f979951175322ba8a2842e7fe0f",
        "test_labels": "ef8b3a783543c23ebbf7b0a4bd128f753de31b31a4decfcdf4a066ef850f5489",
    },
)
_FREY = Source(
    path="frey_faces.npz",
    urls=("https://cs.nyu.edu/~roweis/data/frey_rawface.mat",),
    decode=_decode_frey,
    sha256={"images": "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"},
)
