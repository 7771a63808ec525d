"""The reader of IDX files in ``benchmarks/images/data.py``."""

import gzip

import numpy as np
import pytest

from benchmarks.images import data


@pytest.fixture
def arrays():
    """Bytes of the four files: 5 and 3 images of 4 by 6 pixels."""
    rng = np.random.default_rng(0)
    shapes = ((5, 4, 6), (5,), (3, 4, 6), (3,))
    draw = lambda shape: rng.integers(
        0, 256 if len(shape) == 3 else 10, shape, np.uint8
    )
    return {
        name: draw(shape) for name, shape in zip(data.MNIST_FILES, shapes, strict=True)
    }


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write(folder, arrays, *, compress=False):
    for name, array in arrays.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


@pytest.mark.parametrize("compress", [False, True])
def test_reads_what_was_written(tmp_path, arrays, compress):
    write(tmp_path, arrays, compress=compress)
    images = data.load_mnist(tmp_path)
    found = (images.train, images.train_classes, images.test, images.test_classes)
    for values, array in zip(found, arrays.values(), strict=True):
        scale = 255.0 if array.ndim == 3 else 1.0
        np.testing.assert_allclose(values * scale, array, rtol=1e-6)


def test_says_which_files_are_missing_and_where_they_are(tmp_path, arrays):
    del arrays["t10k-images-idx3-ubyte"]
    write(tmp_path, arrays)
    with pytest.raises(FileNotFoundError, match="missing: t10k-images") as caught:
        data.load_mnist(tmp_path)
    assert data.MNIST_SOURCE in str(caught.value)
    assert "train-labels" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"\x00\x00\x0d" + data[3:], "magic number 2051; got 3331"),
        (lambda data: data[:-1], "must have 120 bytes"),
        (lambda data: data + b"\x00", "must have 120 bytes"),
        (lambda data: data[:9], "magic number"),
        (lambda data: b"", "magic number"),
    ],
)
def test_refuses_damaged_files(tmp_path, arrays, damage, message):
    write(tmp_path, arrays)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        data.load_mnist(tmp_path)


def test_refuses_a_class_too_few(tmp_path, arrays):
    arrays["train-labels-idx1-ubyte"] = arrays["train-labels-idx1-ubyte"][1:]
    write(tmp_path, arrays)
    with pytest.raises(ValueError, match="one class for each of the 5 images"):
        data.load_mnist(tmp_path)


def test_refuses_images_of_another_size(tmp_path, arrays):
    arrays["t10k-images-idx3-ubyte"] = arrays["t10k-images-idx3-ubyte"][:, 1:]
    write(tmp_path, arrays)
    with pytest.raises(ValueError, match=r"of \(4, 6\) pixels"):
        data.load_mnist(tmp_path)
