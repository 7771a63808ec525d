"""Checkpoints that no fit can have written, though their digest fits, are refused."""

import equinox as eqx
import jax.numpy as jnp
import pytest

from numpyro_rtk.training.checkpoint import load_progress, save_progress
from tests.test_file import FINGERPRINT, identical, progressed, start


def state(where, change):
    return lambda p: p._replace(state=eqx.tree_at(where, p.state, replace_fn=change))


def record(**changes):
    return lambda p: p._replace(record={**p.record, **changes})


def test_a_sound_one_comes_back(tmp_path):
    assert load_progress(tmp_path / "fit.ckpt", FINGERPRINT, start()) is not None
    save_progress(tmp_path / "fit.ckpt", FINGERPRINT, progressed())
    found = load_progress(tmp_path / "fit.ckpt", FINGERPRINT, start())
    assert identical(found, progressed())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p._replace(best_step=250), "those of the record"),
        (lambda p: p._replace(best_step=0), "those of the record"),
        (lambda p: p._replace(since_best=0), "those of the record"),
        (lambda p: p._replace(best_loss=0.5), "those of the record"),
        (record(step=[500, 250, 750]), "`step` must increase"),
        (record(step=[250, 500, 1000]), "`step` must increase from 1 to at most 750"),
        (record(step=[]), "one entry for each evaluation"),
        (record(loss=[1.0]), "one entry for each evaluation"),
        (record(loss=[1.0, jnp.nan, 1.0]), "`loss` must be finite"),
        (record(wall_time=[2.0, 1.0, 3.0]), "`wall_time` must not decrease"),
        (state(lambda s: s.step, lambda step: step - 1), "must be that of step 750"),
        (state(lambda s: s.weights.readout, lambda w: w * jnp.nan), "must be finite"),
        (
            state(lambda s: s.weights.readout, lambda w: w.astype(jnp.float16)),
            "must be float32 of shape",
        ),
        (
            state(lambda s: s.opt_state[1].nu.readout, lambda nu: -nu),
            "not negative",
        ),
    ],
)
def test_what_no_fit_has_written(tmp_path, change, message):
    path = tmp_path / "fit.ckpt"
    save_progress(path, FINGERPRINT, change(progressed()))
    with pytest.raises(ValueError, match=rf"fit\.ckpt must .*{message}.* Delete the"):
        load_progress(path, FINGERPRINT, start())
