r"""One safe file of named arrays: a JSON header and raw bytes, no pickle.

The first line is the header, JSON in ASCII ending in a newline; the arrays follow in
its order, little-endian and C-contiguous, and nothing after them. ``checksum`` is the
CRC-32 of the arrays' bytes. A file is replaced only once the new one is complete.
"""

import json
import math
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DTYPES", "read_arrays", "write_arrays"]

_MAX_HEADER_BYTES = 1 << 20
DTYPES = ("<f2", "<f4", "<f8", "<i4", "<i8", "<u4", "|b1")


def write_arrays(
    path: str | os.PathLike,
    header: dict[str, Any],
    named: Sequence[tuple[str, Any]],
    *,
    argument: str,
) -> None:
    """Write the arrays, atomically.

    Args:
        path: of the file; its folder must exist.
        header: what JSON can hold, ``format`` and ``version`` among it; ``checksum`` and
            ``arrays`` are added.
        named: names and arrays.
        argument: what holds the arrays, for messages.

    Raises:
        TypeError: for arrays of other types, or a header that JSON does not hold.
    """
    arrays = [np.asarray(array) for _, array in named]
    arrays = [array.astype(array.dtype.newbyteorder("<")) for array in arrays]
    for (name, _), array in zip(named, arrays, strict=True):
        if array.dtype.str not in DTYPES:
            raise TypeError(
                f"`{argument}` must hold arrays of types {', '.join(DTYPES)}; got "
                f"{array.dtype} at {name}."
            )
    payload = b"".join(array.tobytes() for array in arrays)
    entries = [
        {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
        for (name, _), array in zip(named, arrays, strict=True)
    ]
    checksum = zlib.crc32(payload)
    line = json.dumps({**header, "checksum": checksum, "arrays": entries})
    _write_atomically(Path(path), line.encode("ascii") + b"\n" + payload)


def read_arrays(
    path: str | os.PathLike,
    *,
    what: str,
    file_format: str,
    versions: tuple[int, ...],
    kinds: dict[str, type],
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header, checked in form, and the arrays, checked against it.

    Args:
        path: of the file.
        what: the kind of file, for messages: ``"model"``.
        file_format: the header's ``format``.
        versions: those that are understood.
        kinds: type of each entry that the header must have.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file of another kind or version, damaged, or incomplete.
    """
    path = Path(path)
    foreign = f"{path} is not a numpyro_rtk {what} file"
    with path.open("rb") as file:
        line = file.readline(_MAX_HEADER_BYTES)
        try:
            header = json.loads(line.decode("ascii"))
        except ValueError:
            raise ValueError(f"{foreign}, or its header is damaged.") from None
        if not isinstance(header, dict) or header.get("format") != file_format:
            raise ValueError(f"{foreign}.")
        version = header.get("version")
        if version not in versions:
            raise ValueError(
                f"{path} has format version {version!r}; this numpyro_rtk reads "
                f"versions {versions}. Upgrade numpyro_rtk."
            )
        _check_header(path, header, kinds)
        size = sum(_num_bytes(entry) for entry in header["arrays"])
        payload = file.read(size + 1)
    if not line.endswith(b"\n") or len(payload) < size:
        raise ValueError(f"{path} is truncated: its arrays need {size} bytes.")
    if len(payload) > size:
        raise ValueError(f"{path} has bytes after the end of its arrays.")
    if zlib.crc32(payload) != header["checksum"]:
        raise ValueError(f"{path} is damaged: its arrays do not match their checksum.")
    return header, _split(payload, header["arrays"])


def _check_header(path: Path, header: dict[str, Any], kinds: dict[str, type]) -> None:
    kinds = {**kinds, "checksum": int, "arrays": list}
    sound = all(isinstance(header.get(name), kind) for name, kind in kinds.items())
    sound = sound and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry.get("dtype") in DTYPES
        and isinstance(entry.get("shape"), list)
        and all(type(size) is int and size >= 0 for size in entry["shape"])
        for entry in header["arrays"]
    )
    if not sound:
        raise ValueError(f"{path} is damaged: its header is incomplete.")


def _num_bytes(entry: dict[str, Any]) -> int:
    return math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize


def _split(payload: bytes, entries: list[dict[str, Any]]) -> list[np.ndarray]:
    arrays, start = [], 0
    for entry in entries:
        stop = start + _num_bytes(entry)
        flat = np.frombuffer(payload[start:stop], np.dtype(entry["dtype"]))
        arrays.append(flat.reshape(entry["shape"]))
        start = stop
    return arrays


def _write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's 0o600 is not the user's choice
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
