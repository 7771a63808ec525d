"""Where rows lie: host and stream give what they should, and are read in pieces."""

import itertools
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints

import numpyro_rtk as rtk
from numpyro_rtk.networks import EnergyMLP
from numpyro_rtk.training import fit as fit_module, rows as rows_module
from numpyro_rtk.training.devices import check_devices
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.rows import DeviceRows, HostRows, StreamRows, is_stream

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
        np.testing.assert_array_equal(one[1][name], two[1][name])


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "samples.npy", SAMPLES)
    return np.load(tmp_path / "samples.npy", mmap_mode="r")


@pytest.mark.parametrize("standardise", ["coordinate", "global"])
def test_a_memory_map_gives_the_fit_of_the_array(monkeypatch, mapped, standardise):
    seen = []
    lots = HostRows.lots

    def spy(self, *arguments):
        for lot, num in lots(self, *arguments):
            seen.append(num)
            yield lot, num

    monkeypatch.setattr(HostRows, "lots", spy)
    monkeypatch.setattr(rows_module, "_LOT_STEPS", 25)
    options = {**QUICK, "network": tiny(), "standardise": standardise}
    expected = fit(jr.key(0), SAMPLES, **options)
    assert seen == []
    assert_same_fit(expected, rtk.fit(jr.key(0), mapped, **options))
    assert seen == [25, 25, 10]
    assert_same_fit(expected, fit(jr.key(0), SAMPLES, on_host=True, **options))
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


def chunks_of(samples, sizes):
    """A function that yields the samples in chunks of these sizes."""
    stops = list(itertools.accumulate(sizes))
    assert stops[-1] == len(samples)
    return lambda: (samples[b - a : b] for a, b in zip(sizes, stops, strict=True))


STREAM = chunks_of(SAMPLES, [1, 20, 0, 12, 27])


@pytest.mark.parametrize("head", [15, 25, 1000])
def test_a_stream_is_cut_in_order_and_starts_anew(monkeypatch, head):
    monkeypatch.setattr(rows_module, "NUM_HEAD", head)
    monkeypatch.setattr(rows_module, "_LOT_STEPS", 4)
    rows = StreamRows(STREAM)
    first = SAMPLES[:head]
    loc, scale, _ = rows.standardise("coordinate")
    np.testing.assert_allclose(loc, first.mean(0))
    np.testing.assert_allclose(scale, first.std(0))
    held_out = rows.hold_out(jr.key(0), 0.2) * scale + loc
    assert len(held_out) == round(0.2 * len(first))
    near = np.isclose(SAMPLES[:, None], held_out)
    is_held_out = np.any(np.all(near, axis=2), axis=1)
    assert is_held_out.sum() == is_held_out[:head].sum() == len(held_out)
    lots = [
        np.asarray(lot)[:num].reshape(-1, 2)
        for start in (0, 9)
        for lot, num in rows.lots(jr.key(0), start, 9, 10, lambda lot: lot)
    ]
    trained = np.concatenate(lots) * scale + loc
    expected = np.tile(SAMPLES[~is_held_out], (4, 1))[: 18 * 10]
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-5)


def test_what_is_a_stream():
    listed = list(SAMPLES)
    for stream in (STREAM, STREAM(), iter(listed), {"a": SAMPLES}.values()):
        assert is_stream(stream)
    for array in (SAMPLES, listed, jnp.ones(3), np.float64(1), {"a": SAMPLES}, "a", 3):
        assert not is_stream(array)


class Loader:
    """Re-iterable, as the loaders of other libraries are."""

    def __iter__(self):
        return STREAM()


def test_a_resumed_stream_ends_as_an_unbroken_one(monkeypatch, tmp_path):
    # 16 x 250 rows a call: each call ends inside another pass
    options = {**QUICK, "num_steps": 600, "network": tiny(), "patience": None}
    whole = rtk.fit(jr.key(0), Loader(), **options)
    run_steps, count = fit_module.run_steps, itertools.count()

    def interrupted(*arguments):
        if next(count) >= 5:  # four lots make the first 250 steps
            raise KeyboardInterrupt
        return run_steps(*arguments)

    options["checkpoint"] = tmp_path / "fit.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "run_steps", interrupted)
        with pytest.warns(UserWarning, match="interrupted after 250"):
            rtk.fit(jr.key(0), STREAM, **options)
    assert_same_fit(whole, rtk.fit(jr.key(0), STREAM, **options))
    with pytest.raises(ValueError, match=r"differs in \['samples'\]"):
        rtk.fit(jr.key(0), chunks_of(SAMPLES + 1.0, [60]), **options)


def test_a_bad_chunk_is_refused_when_it_comes(monkeypatch):
    monkeypatch.setattr(rows_module, "NUM_HEAD", 20)
    passes = itertools.count()

    def spoilt():
        yield SAMPLES
        yield SAMPLES * (np.nan if next(passes) == 1 else 1.0)

    with pytest.raises(
        ValueError, match=r"chunk 1 \(pass 1\) of `samples` must be fin"
    ):
        fit(jr.key(0), spoilt, network=tiny(), **QUICK)


def used_up():
    chunks = STREAM()
    return lambda: chunks


def followed_by(chunk):
    return lambda: iter([SAMPLES, SAMPLES, chunk])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": STREAM()}, TypeError, "start anew.*type generator.*make_chunks"),
        ({"samples": used_up()}, ValueError, "start anew.*no rows in pass 1"),
        ({"samples": lambda path: 0}, TypeError, "called without arguments.*lambda"),
        ({"samples": lambda: 3}, TypeError, "return an iterator over arrays.*got 3"),
        ({"samples": lambda: SAMPLES}, TypeError, "return an iterator over arrays"),
        ({"samples": lambda: iter([])}, ValueError, "at least 10 rows; got 0"),
        ({"samples": lambda: [SAMPLES[:9]]}, ValueError, "at least 10 rows; got 9"),
        (
            {"samples": followed_by(SAMPLES * np.inf)},
            ValueError,
            "chunk 2 of .* finite",
        ),
        (
            {"samples": followed_by(SAMPLES[:, :1])},
            ValueError,
            r"chunk 2 of .* event shape of those before it, \(2,\); got shape \(60, 1\)",
        ),
        ({"samples": followed_by(SAMPLES[:, :0])}, ValueError, "chunk 2.* one coordi"),
        (
            {"samples": followed_by(np.ones((5, 2), int))},
            TypeError,
            "chunk 2.* floating",
        ),
        ({"samples": followed_by([SAMPLES])}, TypeError, "chunk 2.* one array.*a list"),
        (
            {"samples": lambda: [1 + 0 * SAMPLES]},
            ValueError,
            "first 60 rows .* vary in",
        ),
        (
            {"samples": STREAM, "on_host": False},
            ValueError,
            "`on_host` must be None or",
        ),
        ({"on_host": 1}, TypeError, "`on_host` must be True, False or None; got 1"),
        ({"samples": STREAM, "support": constraints.positive}, ValueError, "`support`"),
        ({"samples": STREAM, "sites": ["a"]}, ValueError, "`sites` must be None"),
        ({"samples": {"a": STREAM}}, TypeError, r"iterators for \['a'\].*one iterator"),
        ({"devices": "cpu"}, TypeError, "`devices` must be a sequence of JAX devices"),
        ({"devices": []}, ValueError, "`devices` must hold at least one"),
        ({"devices": 2 * jax.devices()[:1]}, ValueError, "none twice"),
    ],
)
def test_refused_with_a_remedy(options, error, message):
    with pytest.raises(error, match=message):
        rtk.fit(jr.key(0), **{"samples": SAMPLES, **QUICK, **options})


def test_a_mesh_of_two_axes_is_refused():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))
    with pytest.raises(ValueError, match="mesh of one axis.*mesh.devices.flat"):
        check_devices(mesh, 8)
