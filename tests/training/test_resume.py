"""Fits that are interrupted and go on from their checkpoint."""

import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.networks import EnergyMLP
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.options import Training
from tests.training.fits import (
    QUICK,
    RESUMED,
    SAMPLES,
    equal,
    interrupted_after,
    tiny,
)


def test_a_resumed_fit_ends_as_an_unbroken_one(monkeypatch, tmp_path):
    whole, history = fit(jr.key(0), SAMPLES, network=tiny(), **RESUMED)
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 2, path, **RESUMED)
    resumed, later = fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **RESUMED)
    assert equal(whole, resumed)
    for name in ("step", "loss", "validation_loss", "best_step"):
        np.testing.assert_array_equal(history[name], later[name])
    assert np.all(np.diff(later["wall_time"]) > 0)
    # a finished one gives its result at once
    again, _ = fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **RESUMED)
    assert equal(whole, again)


@pytest.mark.parametrize(
    ("key", "samples", "options", "named"),
    [
        (1, SAMPLES, {}, "key"),
        (0, SAMPLES + 1.0, {}, "samples"),
        (0, SAMPLES, {"batch_size": 8}, "batch_size"),
        (0, SAMPLES, {"network": "other"}, "network"),
        (0, SAMPLES, {"training": Training(ema_decay=0.9)}, "ema_decay"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(
    monkeypatch, tmp_path, key, samples, options, named
):
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 1, path, **RESUMED)
    options = {"network": tiny(), **RESUMED, **options}
    if options["network"] == "other":
        options["network"] = EnergyMLP((2,), width=8, depth=2, key=jr.key(7))
    with pytest.raises(ValueError, match=rf"differs in \['{named}'\]"):
        fit(jr.key(key), samples, checkpoint=path, **options)


def test_a_damaged_checkpoint_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 1, path, **RESUMED)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"fit\.ckpt must .*Delete the file to begin"):
        fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **RESUMED)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("", ValueError, "`checkpoint` must be the path of a file"),
        ("none/fit.ckpt", FileNotFoundError, "folder that exists.*Make"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_refused_at_once(
    tmp_path, place, error, message
):
    with pytest.raises(error, match=message):
        fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=tmp_path / place, **RESUMED)


def test_a_checkpoint_takes_the_numbers_of_numpy(tmp_path):
    options = {**QUICK, "checkpoint": tmp_path / "fit.ckpt"}
    options["num_steps"] = np.int64(options["num_steps"])
    first, _ = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    again, _ = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    assert equal(first, again)
