"""Images with their classes: MNIST from its own four files, or scikit-learn's digits.

MNIST is read from a folder that the user names; nothing is downloaded. An IDX file is a
magic number (two zero bytes, the type of the values, the number of axes), the length of
each axis as a big-endian integer of 32 bits, and the values.
"""

import gzip
import math
import pathlib
from typing import NamedTuple

import numpy as np
from scipy.ndimage import affine_transform
from sklearn import datasets

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_BYTES = b"\x00\x00\x08"  # magic number of unsigned bytes, without the number of axes
_GZIP = b"\x1f\x8b"
NUM_HELD_OUT, NUM_COPIES = 500, 16  # of scikit-learn's digits


class Images(NamedTuple):
    """Images to learn from and held out, ``(n, H, W)`` between 0 and 1, and classes."""

    name: str
    train: np.ndarray
    train_classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray


def load_digits(seed: int = 0) -> Images:
    """The 1,797 digits of 8 by 8 pixels, each 16 times: itself, and turned and moved.

    So few images are memorised before their law is learned. The held-out ones are set
    aside first.
    """
    rng = np.random.default_rng(seed)
    data = datasets.load_digits()
    order = rng.permutation(len(data.images))
    images, classes = data.images[order] / 16.0, data.target[order]
    parts = []
    for part in (slice(NUM_HELD_OUT, None), slice(NUM_HELD_OUT)):
        parts += [jittered(rng, images[part]), np.tile(classes[part], NUM_COPIES)]
    return Images("digits", *parts)


def jittered(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """The images, and copies turned, stretched and moved by less than a pixel."""
    centre = 0.5 * (np.array(images.shape[1:]) - 1.0)

    def jitter(image):
        angle = 0.05 * rng.normal()
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = np.array(turn) * np.exp(0.03 * rng.normal(size=2))
        offset = centre - matrix @ centre + 0.15 * rng.normal(size=2)
        return affine_transform(image, matrix, offset=offset, order=1)

    copies = [jitter(image) for _ in range(NUM_COPIES - 1) for image in images]
    return np.concatenate([images, np.stack(copies)])


def load_mnist(folder: pathlib.Path) -> Images:
    """MNIST, or another data set in its format (Fashion-MNIST), from ``folder``.

    Raises:
        FileNotFoundError: where one of the four files is missing; says which, and where
            they are to be had.
        ValueError: for a file that is damaged or another's.
    """
    found = {name: _find(folder, name) for name in MNIST_FILES}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold the four files of MNIST, gzipped or not; missing: "
            f"{', '.join(missing)}. They are at {MNIST_SOURCE}, each with `.gz` added."
        )
    paths = [path for path in found.values() if path is not None]
    train, train_classes = _read_pair(*paths[:2])
    test, test_classes = _read_pair(*paths[2:])
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{paths[2]} must hold images of {train.shape[1:]} pixels, as {paths[0]} "
            f"does; got {test.shape[1:]}."
        )
    return Images("MNIST", train, train_classes, test, test_classes)


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    # some mirrors unpack to `train-images.idx3-ubyte`
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _read_pair(
    images_path: pathlib.Path, classes_path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    images, classes = read_idx(images_path, 3), read_idx(classes_path, 1)
    if len(images) != len(classes):
        raise ValueError(
            f"{classes_path} must hold one class for each of the {len(images)} images of "
            f"{images_path}; got {len(classes)}."
        )
    return images.astype(np.float32) / 255.0, classes.astype(int)


def read_idx(path: pathlib.Path, num_axes: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, gzipped or not.

    Raises:
        ValueError: for another magic number, or more or less data than the header says.
    """
    data = path.read_bytes()
    if data[:2] == _GZIP:
        data = gzip.decompress(data)
    magic = _BYTES + bytes([num_axes])
    start = len(magic) + 4 * num_axes
    if data[: len(magic)] != magic or len(data) < start:
        raise ValueError(
            f"{path} must be an IDX file with magic number {int.from_bytes(magic)}; got "
            f"{int.from_bytes(data[:4])}. Get it again from {MNIST_SOURCE}."
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", num_axes, len(magic)))
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} must have {math.prod(shape)} bytes after its header, for shape "
            f"{shape}; got {len(data) - start}. Get it again from {MNIST_SOURCE}."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
