"""Where rows lie: the host gives what it should, and is read in pieces."""

import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.networks import EnergyMLP
from numpyro_rtk.training import rows as rows_module
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.options import Training
from numpyro_rtk.training.rows import DeviceRows, HostRows

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(60, 2)) ** 3 + [5.0, 0.0]
QUICK = {"num_steps": 60, "batch_size": 16, "progress_bar": False}


def tiny():
    return EnergyMLP((2,), width=8, depth=2, key=jr.key(1))


def assert_equal(one, two):
    leaves = [jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (one, two)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_fit(one, two):
    assert_equal(one[0], two[0])
    for name in ("step", "loss", "validation_loss", "best_step"):
        # a mean over steps, of which one program may take all and another a part
        np.testing.assert_allclose(one[1][name], two[1][name], rtol=1e-6)


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "samples.npy", SAMPLES)
    return np.load(tmp_path / "samples.npy", mmap_mode="r")


@pytest.mark.parametrize("standardise", ["coordinate", "global"])
def test_a_memory_map_gives_the_fit_of_the_array(monkeypatch, mapped, standardise):
    seen = []
    blocks = HostRows.blocks

    def spy(self, *arguments):
        for block, num in blocks(self, *arguments):
            seen.append(num)
            yield block, num

    monkeypatch.setattr(HostRows, "blocks", spy)
    monkeypatch.setattr(rows_module, "_BLOCK_STEPS", 25)
    training = Training(standardise=standardise)
    options = {**QUICK, "network": tiny(), "training": training}
    expected = fit(jr.key(0), SAMPLES, **options)
    assert seen == []
    assert_same_fit(expected, rtk.fit(jr.key(0), mapped, **options))
    assert seen == [25, 25, 10]
    options["training"] = Training(standardise=standardise, on_host=True)
    assert_same_fit(expected, fit(jr.key(0), SAMPLES, **options))
    assert seen == [25, 25, 10] * 2


def test_only_large_arrays_and_memory_maps_stay_on_the_host(monkeypatch, mapped):
    kind = lambda samples, on_host=None: type(
        rows_module.open_rows(samples, on_host, jnp.asarray)
    )
    assert kind(SAMPLES) is kind(mapped, False) is DeviceRows
    assert kind(mapped) is kind(SAMPLES, True) is HostRows
    monkeypatch.setattr(rows_module, "_MAX_DEVICE_BYTES", 4 * SAMPLES.size - 1)
    assert kind(SAMPLES) is HostRows
    assert kind(SAMPLES, False) is kind(jnp.asarray(SAMPLES)) is DeviceRows


def peak(make):
    tracemalloc.start()
    make().standardise("coordinate")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_a_memory_map_is_read_in_chunks(monkeypatch, tmp_path):
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", "f4", (1 << 16, 8))
    big[:] = RNG.normal(size=big.shape)
    monkeypatch.setattr(rows_module, "_CHUNK_SIZE", 1 << 14)
    in_double = 8 * big.size
    assert peak(lambda: HostRows(big)) < in_double / 4
    assert peak(lambda: DeviceRows(big, jnp.asarray)) > in_double


def test_chunks_change_moments_by_rounding_only(monkeypatch):
    whole = HostRows(SAMPLES).standardise("coordinate")
    identity = HostRows(SAMPLES).identity()
    monkeypatch.setattr(rows_module, "_CHUNK_SIZE", 2 * 13)
    rows = HostRows(SAMPLES)
    assert len(list(rows._chunks())) == 5
    for one, two in zip(whole[:2], rows.standardise("coordinate")[:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-14)
    base = rows.standardise("coordinate")[2]
    np.testing.assert_allclose(whole[2].variances, base.variances, rtol=1e-6)
    assert rows.identity() == identity == DeviceRows(SAMPLES, jnp.asarray).identity()


def test_a_bad_row_on_the_host_is_named(monkeypatch):
    monkeypatch.setattr(rows_module, "_CHUNK_SIZE", 2 * 13)
    spoilt = SAMPLES.copy()
    spoilt[30, 1] = np.nan
    with pytest.raises(ValueError, match=r"rows 26 to 38, .* first at index \(30, 1\)"):
        HostRows(spoilt)
    spoilt[:, 1] = 3.0
    with pytest.raises(ValueError, match=r"vary in every coordinate.*index \(1,\)"):
        HostRows(spoilt)


@pytest.mark.parametrize(
    "samples",
    [iter(SAMPLES), (row for row in SAMPLES), lambda: iter([SAMPLES]), {1: 2}.values()],
    ids=["iterator", "generator", "function", "view"],
)
def test_an_iterator_is_refused_with_what_to_do(samples):
    with pytest.raises(TypeError, match=r"got an iterator or a function") as refused:
        rtk.fit(jr.key(0), samples, **QUICK)
    with pytest.raises(TypeError, match=r"got an iterator or a function"):
        rtk.fit(jr.key(0), {"a": samples}, **QUICK)
    lines = str(refused.value).splitlines()[1:]
    assert len(lines) == 3
    assert "np.lib.format.open_memmap" in lines[0]


def test_the_three_lines_of_that_message_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as refused:
        rtk.fit(jr.key(0), iter(SAMPLES), **QUICK)
    lines = [line.strip() for line in str(refused.value).splitlines()[1:]]
    fitted = []
    names = {
        **{"np": np, "n": 60, "dim": 2, "m": 20, "chunks": np.split(SAMPLES, 3)},
        **{"key": jr.key(0), "fit": lambda key, rows: fitted.append(rows)},
    }
    exec("\n".join(lines), names)
    assert isinstance(fitted[0], np.memmap)
    names["rows"].flush()
    np.testing.assert_allclose(fitted[0], SAMPLES, rtol=1e-6)
