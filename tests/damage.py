"""Damaged files: bytes changed at random, and contents that somebody has rewritten."""

import hashlib
import io
import json
import zipfile

import numpy as np

NOT_NEGATIVE = (".variances", "scale", "nu.readout", "wall_time", "step", "count")


def changed_bytes(rng, content):
    """One random change of a few bytes, or of where they stand."""
    at, to = sorted(rng.integers(0, len(content), 2))
    some = rng.bytes(int(rng.integers(1, 9)))
    flipped = bytes([content[at] ^ (1 << int(rng.integers(8)))])
    middle = (at + to) // 2
    return [
        content[:at] + flipped + content[at + 1 :],
        content[:at] + some + content[at + len(some) :],
        content[:at] + some + content[at:],
        content[:at] + content[to:],
        content[:at],
        content + some,
        content[:at] + content[middle:to] + content[at:middle] + content[to:],
        content[:to] + content[at:],
        content[:at] + bytes(to - at) + content[to:],
    ][int(rng.integers(9))]


def opened(content):
    """The header's text, and the arrays by name."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays.pop("header.json").decode(), arrays


def rewritten(text, arrays, *, members=(), compression=zipfile.ZIP_STORED):
    """A file with this header, these arrays and members, and a digest that fits."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("header.json", text)
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
        for name, part in members:
            archive.writestr(name, part)
        archive.comment = b"0" * 64
    return digested(buffer.getvalue())


def digested(content):
    """The same with a digest that fits, in the place of the last 64 bytes."""
    content = content[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def npy(array, *, shape=None, dtype=None, order=False, version=b"\1\0"):
    """An array as NumPy writes it, or one whose header says something else."""
    shape = repr(array.shape) if shape is None else shape
    dtype = repr(array.dtype.str) if dtype is None else dtype
    head = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    size = len(head).to_bytes(2, "little")
    return b"\x93NUMPY" + version + size + head.encode() + array.tobytes()


def edited_containers(content):
    """What a reader of archives, of JSON or of arrays may stumble over."""
    text, arrays = opened(content)
    name, first = next(iter(arrays.items()))
    rest = {key: array for key, array in arrays.items() if key != name}
    member = lambda **options: rewritten(
        text, rest, members=[(f"{name}.npy", npy(first, **options))]
    )
    yield rewritten(text, arrays, compression=zipfile.ZIP_DEFLATED)
    yield rewritten(text, arrays, members=[("readme.txt", b"more")])
    yield rewritten(text, arrays, members=[("more.npy", npy(first))])
    yield rewritten(text, {**arrays, f"../{name}": first})
    yield digested(content + bytes(10 * 64))
    yield digested(content[:-64] + content)
    yield digested(content[:-64])
    for header in (
        "",
        "[1, 2]",
        "[" * 100_000 + "]" * 100_000,
        '{"a": ' * 100_000 + "1" + "}" * 100_000,
        text[:-1] + ', "more": 1}',
        text[:-1] + ', "format": "numpyro_rtk model"}',
        text[:-1] + f", {text[1:]}",
        text.replace('"format": "numpyro_rtk', '"format": "other'),
        text.replace(": [", ": [NaN, "),
        text.replace(": [", f": [{'9' * 5000}, "),
        text.replace(": [", ": [1e999, "),
        text.replace(": [", ": [[[[]]], "),
        text.replace(", ", ",  "),
        text + "\n",
        "\ufeff" + text,
    ):
        yield rewritten(header, arrays)
    huge = "(1000000000000000000,)"
    yield member(shape=huge)
    yield member(shape="(1000000000000000000, 1000000000000000000, 0)")
    yield member(shape=f"({'9' * 600},)")
    yield member(shape="(-1,)")
    yield member(shape="(True,)")
    yield member(shape="(" * 300 + ")" * 300)
    yield member(shape="-" * 800 + "1")
    yield member(dtype="'|O'")
    yield member(dtype="'>f4'")
    yield member(dtype="[('a', '<f4')]")
    yield member(dtype="'<U1000000000'")
    yield member(order=True, shape="(1, 1)")
    yield member(version=b"\3\0")
    yield member(version=b"\x09\0")
    yield rewritten(text, rest, members=[(f"{name}.npy", b"")])
    yield swollen(content)


def swollen(content):
    """The first member is said to have two thousand million bytes."""
    at = content.index(b"PK\1\2") + 20
    sizes = (2_000_000_000).to_bytes(4, "little") * 2
    return digested(content[:at] + sizes + content[at + 8 :])


def edited_headers(content, is_legitimate):
    """Every value of the header replaced by what no such value is; every key left out."""
    text, arrays = opened(content)
    header = json.loads(text)
    for path in places(header):
        for value in (True, -1, 1e18, 10**18, "x", [], {"a": 1}, None):
            if not is_legitimate(path, value):
                yield rewritten(json.dumps(put(header, path, value)), arrays)
    for name in header:
        less = {key: value for key, value in header.items() if key != name}
        yield rewritten(json.dumps(less), arrays)


def places(value, path=()):
    """Paths to everything in nested dicts and lists that is neither."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from places(part, (*path, key))
    else:
        yield path


def put(value, path, new):
    """A copy of nested dicts and lists with ``new`` at the path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


def edited_arrays(content):
    """Every array with values, a type, a shape or a name that it cannot have."""
    text, arrays = opened(content)
    for name, array in arrays.items():
        changes = [array.astype("<f2"), array.astype("|b1"), array[None]]
        if array.dtype.kind == "f":
            changes += [array.astype("<f8" if array.itemsize == 4 else "<f4")]
        if array.size and array.dtype.kind == "f":
            changes += [with_first(array, bad) for bad in (np.nan, np.inf)]
        if array.size and name.endswith(NOT_NEGATIVE):
            changes += [(-1 - abs(array)).astype(array.dtype), with_first(array, -1)]
        rest = {key: value for key, value in arrays.items() if key != name}
        for changed in changes:
            yield rewritten(text, {**rest, name: changed})
        yield rewritten(text, rest)
        yield rewritten(text, {**rest, f"{name}2": array})


def stale(content):
    """Sound contents, but others than those that were digested; the digest as it was."""
    text, arrays = opened(content)
    for name, array in arrays.items():
        if array.size and array.dtype.kind == "f":
            other = with_first(array, 0.5 * array.flat[0] + 0.25)
            yield rewritten(text, {**arrays, name: other})[:-64] + content[-64:]


def with_first(array, value):
    """The same with another first entry."""
    array = array.copy()
    array.flat[0] = value
    return array
