r"""One safe file of named arrays: NumPy's npz, with a header and a digest over all of it.

The file is a zip archive, nothing in it compressed, of ``header.json`` and one ``.npy``
for each array: ``numpy.load`` opens it. The header is JSON as ``json.dumps`` writes it.
The archive's comment, and so the end of the file, is the SHA-256 of every byte before
it, in hexadecimal.

Nothing is parsed before the digest fits, no size is believed that the bytes do not bear
out, and nothing is unpickled, imported or executed. What the header and the arrays mean,
and which values they may have, their readers check: a digest says only that a file is as
it was written.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import stat
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "DTYPES",
    "Kind",
    "as_leaves",
    "check_target",
    "from_arrays",
    "read",
    "refusing",
    "to_arrays",
    "write",
]

DTYPES = ("<f2", "<f4", "<f8", "<i4", "<i8", "<u4", "|b1")
_HEADER = "header.json"
_DIGEST_SIZE = 64  # hexadecimal digits
_ZIP_MAGIC = b"PK\x03\x04"
_MAX_NPY_HEADER = 1000
_DATE = (1980, 1, 1, 0, 0, 0)  # the same content gives the same file


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: for messages, and in the header: ``"model"``.
        argument: by which a user gives the path.
        keys: of the header, all of them and no others.
        remedy: a sentence: what to do about a file that is refused.
    """

    name: str
    argument: str
    keys: tuple[str, ...]
    remedy: str


def write(
    path: str | os.PathLike,
    kind: Kind,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write the arrays, replacing a file only once the new one is complete.

    A symbolic link stays one, and what it leads to is replaced.

    Raises:
        FileNotFoundError: where the folder does not exist.
        TypeError: for a header that JSON does not hold.
        ValueError: for a path that leads to anything but a file.
    """
    target = check_target(path, kind)
    text = json.dumps({"format": _format(kind), **header}, allow_nan=False)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_HEADER, _DATE), text)
        for name, array in arrays.items():
            npy = io.BytesIO()
            np.lib.format.write_array(npy, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), npy.getvalue())
        archive.comment = b"0" * _DIGEST_SIZE  # its length is in what is digested
    _replace(target, _with_digest(buffer.getvalue()[:-_DIGEST_SIZE]))


def read(
    path: str | os.PathLike, kind: Kind
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header, with the keys of its kind, and the arrays.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file of another kind, damaged, or incomplete.
    """
    content = _content(path, kind)
    with refusing(path, kind):
        _check_digest(content)
        return _parsed(content, kind)


@contextlib.contextmanager
def refusing(path: str | os.PathLike, kind: Kind) -> Iterator[None]:
    """Whatever goes wrong inside is a ValueError that names the file and the remedy.

    Everything is caught: what parsers, and constructors of networks, make of contents
    that nobody has foreseen may be any exception, a MemoryError among them.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        reason = reason if len(reason) < 400 else f"{reason[:400]} ..."
        raise ValueError(
            f"{os.fspath(path)} must be a sound numpyro_rtk {kind.name}: "
            f"{reason.rstrip('.')}. {kind.remedy}"
        ) from error


# -- arrays of a pytree ------------------------------------------------------------------


def to_arrays(tree: Any, argument: str) -> dict[str, np.ndarray]:
    """The arrays of a pytree by where they stand, ready to be written.

    Raises:
        TypeError: for arrays of types that the file does not know.
    """
    arrays = {}
    for name, leaf in as_leaves(tree).items():
        array = np.asarray(leaf, order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in DTYPES:
            raise TypeError(
                f"`{argument}` must hold arrays of types "
                f"{', '.join(np.dtype(dtype).name for dtype in DTYPES)}; got "
                f"{array.dtype} at {name}. Convert it."
            )
        arrays[name] = array
    return arrays


def from_arrays(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The pytree of this structure that :func:`to_arrays` made the arrays of.

    Args:
        template: with arrays, or their ``jax.ShapeDtypeStruct``, in their places.
        arrays: one for each of them, of its shape and type.

    Raises:
        ValueError: for others.
    """
    expected = as_leaves(template)
    if expected.keys() != arrays.keys():
        missing, unknown = (
            sorted(expected.keys() - arrays.keys()),
            sorted(arrays.keys() - expected.keys()),
        )
        raise ValueError(
            f"its arrays must be those of its header; missing are {missing[:5]}, "
            f"unknown {unknown[:5]}"
        )
    for name, leaf in expected.items():
        array = arrays[name]
        if (array.shape, array.dtype) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
            raise ValueError(
                f"`{name}` must be {np.dtype(leaf.dtype)} of shape {tuple(leaf.shape)}; "
                f"got {array.dtype} of shape {array.shape}"
            )
    filled = iter([jnp.asarray(arrays[name]) for name in expected])
    leaves, structure = jax.tree.flatten(template)
    leaves = [next(filled) if _is_array(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def as_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by where they stand: ``{"base.variances": ...}``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path).removeprefix("."): leaf
        for path, leaf in leaves
        if _is_array(leaf)
    }


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


# -- reading -----------------------------------------------------------------------------


def _format(kind: Kind) -> str:
    return f"numpyro_rtk {kind.name}"


def _content(path: str | os.PathLike, kind: Kind) -> bytes:
    """All bytes of what may be such a file: something else is not read in vain."""
    path = _as_path(path, kind)
    if not path.exists():
        raise FileNotFoundError(
            f"`{kind.argument}` must be a file that exists; got {path}."
        )
    if not path.is_file():
        raise ValueError(
            f"`{kind.argument}` must be a file; got {path}, which is none. Give the "
            "path of one file."
        )
    with path.open("rb") as file:
        content = file.read(len(_ZIP_MAGIC))
        if content != _ZIP_MAGIC:
            raise ValueError(
                f"{path} must be a numpyro_rtk {kind.name}; got another kind of file. "
                f"{kind.remedy}"
            )
        return content + file.read()


def _check_digest(content: bytes) -> None:
    if content != _with_digest(content[:-_DIGEST_SIZE]):
        raise ValueError(
            "it is damaged, incomplete or of another kind, for its end must be the "
            "digest of the rest"
        )


def _with_digest(content: bytes) -> bytes:
    return content + hashlib.sha256(content).hexdigest().encode("ascii")


def _parsed(content: bytes, kind: Kind) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        _check_directory(members, content)
        starts = {member.header_offset for member in members}
        if 0 not in starts or archive.comment != content[-_DIGEST_SIZE:]:
            raise ValueError("nothing must stand before or after its archive")
        parts = {member.filename: archive.read(member) for member in members}
    header = _parsed_header(parts.pop(_HEADER, b""), kind)
    return header, {
        name.removesuffix(".npy"): _parsed_array(name, part)
        for name, part in parts.items()
    }


def _check_directory(members: list[zipfile.ZipInfo], content: bytes) -> None:
    """No member may be larger than what stands in the file, nor be there twice."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
        any(member.compress_size != member.file_size for member in members)
        or sum(member.file_size for member in members) > len(content)
    ):
        raise ValueError("its members must be stored as they are, not compressed")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("its members must have names of their own")
    if not all(name == _HEADER or name.endswith(".npy") for name in names):
        raise ValueError(f"its members must be {_HEADER} and arrays, `.npy`")


def _parsed_header(part: bytes, kind: Kind) -> dict[str, Any]:
    """JSON in the one way of writing it: no NaN, no key twice, no second spelling."""
    text = part.decode("ascii")
    header = json.loads(text or "null")
    if not isinstance(header, dict) or json.dumps(header, allow_nan=False) != text:
        raise ValueError("its header must be an object as `json.dumps` writes it")
    theirs = header.pop("format", None)
    if theirs != _format(kind):
        raise ValueError(f"its format must be {_format(kind)!r}; got {theirs!r:.80}")
    if header.keys() != set(kind.keys):
        raise ValueError(
            f"its header must have the keys {list(kind.keys)}; got {list(header)}"
        )
    return header


def _parsed_array(name: str, part: bytes) -> np.ndarray:
    """By NumPy's reader of headers; the shape must be that of the bytes there are."""
    file = io.BytesIO(part)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} must be of version 1.0 of NumPy's format")
    shape, is_transposed, dtype = np.lib.format.read_array_header_1_0(
        file, max_header_size=_MAX_NPY_HEADER
    )
    values = part[file.tell() :]
    if dtype.str not in DTYPES or is_transposed:
        raise ValueError(f"{name} must be an array in C order of one of {DTYPES}")
    if any(type(size) is not int or size < 0 for size in shape) or (
        math.prod(shape) * dtype.itemsize != len(values)
    ):
        raise ValueError(f"{name} must hold as many values as its shape {shape} says")
    return np.frombuffer(values, dtype).reshape(shape)


# -- writing -----------------------------------------------------------------------------


def check_target(path: str | os.PathLike, kind: Kind) -> Path:
    """The file that a path leads to, through links, if one can be written there.

    Raises:
        FileNotFoundError: where its folder does not exist.
        ValueError: where something else is there.
    """
    target = Path(os.path.realpath(_as_path(path, kind)))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"`{kind.argument}` must be in a folder that exists; got "
            f"{os.fspath(path)}. Make {target.parent} first."
        )
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ValueError(
            f"`{kind.argument}` must be the path of a file; got {os.fspath(path)}, which "
            "is something else. Give the path of a file, new or to be replaced."
        )
    return target


def _as_path(path: str | os.PathLike, kind: Kind) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise TypeError(
            f"`{kind.argument}` must be a path; got {path!r:.60}."
        ) from None


def _replace(target: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():  # its permissions are the user's choice
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
