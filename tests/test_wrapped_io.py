"""Saving and loading of networks that were trained elsewhere."""

import functools
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import schedules
from numpyro_rtk.networks import ScoreMLP
from tests import damage


class Denoiser(eqx.Module):
    """A user's own class, which says what it was made of."""

    layer: eqx.nn.Linear
    sizes: tuple[int, ...] = eqx.field(static=True)
    slope: float

    def __init__(self, sizes, slope=0.5, *, key):
        self.layer = eqx.nn.Linear(sizes[0] + 1, sizes[0], key=key)
        self.sizes, self.slope = sizes, slope

    def __call__(self, x, time):
        return self.slope * self.layer(jnp.append(x, time))

    def hyperparameters(self):
        return {"sizes": list(self.sizes), "slope": self.slope}


class Undescribed(eqx.Module):
    layer: eqx.nn.Linear
    slope: float = 1.0

    def __call__(self, x, time):
        return self.slope * self.layer(x)


def apply(params, x, time):
    return params["weight"] @ x + time


def apply_to_many(weight, x, time):
    return x @ weight + time[:, None]


def wrap(fn, schedule=None, **options):
    options = {"loc": [1.0, 2.0], "scale": 3.0, "predicts": "data", **options}
    schedule = schedules.VP(0.1, 20.0) if schedule is None else schedule
    return rtk.ScoreModel.from_network(fn, (2,), schedule=schedule, **options)


def undescribed(seed, slope=1.0):
    return Undescribed(eqx.nn.Linear(2, 2, key=jr.key(seed)), slope)


def partial(seed):
    return functools.partial(apply, {"weight": jr.normal(jr.key(seed), (2, 2))})


OWN = wrap(Denoiser((2,), key=jr.key(1)))
PRODUCTS = np.linspace(0.99, 0.01, 7)
CASES = {
    "own class": (OWN, [Denoiser]),
    "own instance": (OWN, [Denoiser((2,), key=jr.key(2))]),
    "module": (wrap(undescribed(1)), [undescribed(2)]),
    "partial": (wrap(partial(1)), [partial(2)]),
    "built-in": (wrap(ScoreMLP((2,), width=4, depth=2, key=jr.key(1))), []),
    "DDPM": (
        wrap(partial(1), schedules.DDPM(PRODUCTS), predicts="velocity"),
        [partial(2)],
    ),
    "VE": (
        wrap(partial(1), schedules.VE(0.1, 30.0, time_is="fraction")),
        [partial(2)],
    ),
    "raw EDM": (wrap(partial(1), schedules.EDM(0.4, raw=True)), [partial(2)]),
    "flow": (
        wrap(partial(1), schedules.FlowMatching(), noise_range=(0.02, 30.0)),
        [partial(2)],
    ),
    "batched": (
        wrap(functools.partial(apply_to_many, jnp.eye(2)), batched=True),
        [functools.partial(apply_to_many, jnp.zeros((2, 2)))],
    ),
}


@pytest.mark.parametrize(("model_", "networks"), CASES.values(), ids=CASES)
def test_round_trip_is_equal_to_the_last_bit(tmp_path, model_, networks):
    path = tmp_path / "model.rtk"
    rtk.save(path, model_)
    again = rtk.load(path, networks=networks)
    assert type(again) is type(model_)
    assert repr(again) == repr(model_)
    ours, theirs = (eqx.filter(m, eqx.is_array) for m in (model_, again))
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))
    x = jnp.asarray([0.3, -2.0])
    np.testing.assert_array_equal(again.score(x, 0.4), model_.score(x, 0.4))
    rtk.save(tmp_path / "again.rtk", again)
    assert (tmp_path / "again.rtk").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("model_", "networks", "message"),
    [
        (OWN, [], r"class 'Denoiser'.*`load\(path, networks=\[\.\.\.\]\)`"),
        (wrap(undescribed(1)), [Undescribed], "pass one of the same structure"),
        (wrap(undescribed(1, 2.0)), [undescribed(2)], r"have the numbers \[2.0\]"),
        (
            wrap(partial(1)),
            [functools.partial(apply, {"weights": jnp.eye(2)})],
            "missing are .*'weights'",
        ),
    ],
)
def test_another_network_is_refused(tmp_path, model_, networks, message):
    rtk.save(tmp_path / "model.rtk", model_)
    with pytest.raises(ValueError, match=message):
        rtk.load(tmp_path / "model.rtk", networks=networks)


class Own(schedules.OU):
    """A user's own schedule."""


@pytest.mark.parametrize(
    ("model_", "kind", "message"),
    [
        (wrap(lambda x, time: x), TypeError, "a function without any"),
        (wrap(partial(1), Own()), ValueError, "schedule of `rtk.schedules`"),
        (
            eqx.tree_at(lambda m: m.scale, OWN, jnp.zeros(2)),
            ValueError,
            "`scale` must be positive.*Nothing was written",
        ),
        (
            eqx.tree_at(lambda m: m.network.layer.weight, OWN, jnp.zeros((2, 4))),
            ValueError,
            "`network.layer.weight` must be float32 of shape",
        ),
    ],
)
def test_what_cannot_be_saved(tmp_path, model_, kind, message):
    with pytest.raises(kind, match=message):
        rtk.save(tmp_path / "x.rtk", model_)
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_is_refused(tmp_path):
    path, rng = tmp_path / "model.rtk", np.random.default_rng(0)
    rtk.save(path, OWN)
    content = path.read_bytes()
    for _ in range(50):
        changed = damage.changed_bytes(rng, content)
        path.write_bytes(changed)
        if changed != content:
            with pytest.raises(ValueError, match="model.rtk must be"):
                rtk.load(path, networks=[Denoiser])


def test_double_precision_needs_it(tmp_path, x64):
    path = tmp_path / "model.rtk"
    model_ = wrap(partial(1))
    assert model_.loc.dtype == np.float64
    rtk.save(path, model_)
    assert rtk.load(path, networks=[partial(2)]).loc.dtype == np.float64
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(ValueError, match="double precision, which need"):
        rtk.load(path, networks=[partial(2)])
