"""Saving and loading: equal to the last bit, and every damage refused."""

import dataclasses
import json
import os
import pickle
import stat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.gaussians import noised_gaussian, noised_mixture
from numpyro_rtk.io import load, save
from numpyro_rtk.networks import (
    EnergyMLP,
    EnergyModel,
    EnergySet,
    EnergyUNet,
    ScoreMLP,
    ScoreModel,
    ScoreUNet,
)
from numpyro_rtk.networks.site import SiteSpec


class OwnNetwork(EnergyMLP):
    """A user's own class, with the built-in's arguments."""


MIXTURE = np.eye(3)[:2], np.stack([np.eye(3)] * 2) * 0.2


def build_model(network_class, event_shape=(3,), width=8, depth=2):
    network = network_class(event_shape, width=width, depth=depth, key=jr.key(1))
    network = eqx.tree_at(
        lambda network: network.readout, network, network.readout + 0.125
    )
    dim = int(np.prod(event_shape))
    is_score = network_class is ScoreMLP
    return (ScoreModel if is_score else EnergyModel)(
        network=network,
        base=noised_gaussian(jnp.eye(dim), jnp.linspace(0.3, 1.0, dim)),
        loc=jr.normal(jr.key(2), event_shape),
        scale=jnp.exp(jr.normal(jr.key(3), event_shape)),
        noise_range=(0.01, 25.0),
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.rtk"
    save(path, build_model(EnergyMLP))
    return path


@pytest.mark.parametrize("network_class", [EnergyMLP, ScoreMLP])
@pytest.mark.parametrize("event_shape", [(), (3, 2)])
@pytest.mark.parametrize(("width", "depth"), [(5, 1), (3, 4)])
def test_round_trip_is_equal_to_the_last_bit(
    tmp_path, network_class, event_shape, width, depth
):
    model = build_model(network_class, event_shape, width, depth)
    path = tmp_path / "model.rtk"
    save(path, model)
    assert os.listdir(tmp_path) == ["model.rtk"]
    again = load(path)
    assert type(again) is type(model)
    assert again.noise_range == model.noise_range
    assert bool(eqx.tree_equal(again, model))
    save(tmp_path / "again.rtk", again)
    assert (tmp_path / "again.rtk").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("network_class", "event_shape", "options"),
    [
        (EnergyUNet, (5, 4), {"channels": 3, "depth": 2}),
        (ScoreUNet, (4, 5, 2), {"channels": 2, "depth": 3}),
        (EnergySet, (3, 2), {"width": 5, "depth": 2}),
    ],
)
def test_round_trip_of_images_and_sets(tmp_path, network_class, event_shape, options):
    network = network_class(event_shape, **options, key=jr.key(1))
    like = build_model(
        ScoreMLP if network_class is ScoreUNet else EnergyMLP, event_shape
    )
    model = eqx.tree_at(lambda model: model.network, like, network)
    save(tmp_path / "model.rtk", model)
    again = load(tmp_path / "model.rtk")
    assert type(again.network) is network_class
    assert bool(eqx.tree_equal(again, model))


def test_round_trip_of_a_mixture_base(tmp_path):
    base = noised_mixture([0.3, 0.7], *MIXTURE)
    model = dataclasses.replace(build_model(EnergyMLP), base=base, reach=4.5)
    path = tmp_path / "model.rtk"
    save(path, model)
    assert bool(eqx.tree_equal(load(path), model))


def test_round_trip_of_a_base_alone(tmp_path):
    model = dataclasses.replace(build_model(ScoreMLP), uses_network=False)
    path = tmp_path / "model.rtk"
    save(path, model)
    assert bool(eqx.tree_equal(load(path), model))


def test_loaded_model_computes_the_same(saved):
    x = jnp.ones((2, 3))
    call = eqx.filter_jit(lambda model, x: model.log_density_and_score(x, 0.1))
    got, expected = call(load(str(saved)), x), call(build_model(EnergyMLP), x)
    for one, two in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, two)


def test_in_double_precision_it_is_the_same(saved, x64):
    again = load(saved)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(np.float32)}
    save(saved.parent / "again.rtk", again)
    assert (saved.parent / "again.rtk").read_bytes() == saved.read_bytes()


def test_numpy_opens_it(saved):
    with np.load(saved, allow_pickle=False) as content:
        header = json.loads(content["header.json"])
        variances = content["base.variances"]
    assert header["format"] == "numpyro_rtk model"
    assert header["hyperparameters"] == {"event_shape": [3], "width": 8, "depth": 2}
    np.testing.assert_array_equal(variances, build_model(EnergyMLP).base.variances)


def test_a_link_stays_one_and_permissions_stay(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "model.rtk", tmp_path / "link.rtk"
    link.symlink_to(target)
    for mode in (None, 0o640):  # first the link leads nowhere
        if mode is not None:
            target.chmod(mode)
        save(link, build_model(EnergyMLP))
        assert link.is_symlink()
        assert not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert bool(eqx.tree_equal(load(link), load(target)))
    assert sorted(os.listdir(tmp_path)) == ["link.rtk", "there"]
    assert os.listdir(tmp_path / "there") == ["model.rtk"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    save(tmp_path / "model.rtk", build_model(EnergyMLP))
    (tmp_path / "other").write_bytes(b"")
    modes = {(tmp_path / name).stat().st_mode for name in os.listdir(tmp_path)}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("", ValueError, "must be the path of a file"),
        ("none/model.rtk", FileNotFoundError, "in a folder that exists.*Make .*none"),
        ("loop", ValueError, "must be the path of a file"),
        (None, TypeError, "`path` must be a path; got None"),
    ],
)
def test_where_nothing_can_be_saved(tmp_path, place, error, message):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = None if place is None else tmp_path / place
    with pytest.raises(error, match=message):
        save(path, build_model(EnergyMLP))
    assert os.listdir(tmp_path) == ["loop"]


def test_saving_replaces_a_file_or_leaves_it(saved, monkeypatch):
    before = saved.read_bytes()
    save(saved, build_model(EnergyMLP, width=4))
    after = saved.read_bytes()
    assert after != before

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(saved, build_model(EnergyMLP))
    assert saved.read_bytes() == after
    assert os.listdir(saved.parent) == [saved.name]


def test_own_network_needs_its_class(tmp_path):
    path, model = tmp_path / "own.rtk", build_model(OwnNetwork)
    save(path, model)
    with pytest.raises(ValueError, match=r"class 'OwnNetwork'.*networks=\[\.\.\.\]"):
        load(path)
    assert bool(eqx.tree_equal(load(path, networks=[OwnNetwork]), model))


class Undescribed(EnergyMLP):
    def hyperparameters(self):
        return {"array": jnp.ones(3)}


class Misdescribed(EnergyMLP):
    def hyperparameters(self):
        return {**super().hyperparameters(), "width": 4}


class Sloped(EnergyMLP):
    """With a number that its hyperparameters do not mention."""

    slope: float

    def __init__(self, event_shape, *, slope=1.0, **options):
        super().__init__(event_shape, **options)
        self.slope = slope


Impostor = type("EnergyMLP", (EnergyMLP,), {})


def changed(where, change, network_class=EnergyMLP):
    return eqx.tree_at(where, build_model(network_class), replace_fn=change)


def replaced(**attributes):
    return dataclasses.replace(build_model(EnergyMLP), **attributes)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ({"a": 1}, TypeError, "EnergyModel or a ScoreModel; got dict"),
        (build_model(EnergyMLP).network, TypeError, "ScoreModel; got EnergyMLP"),
        (build_model(Undescribed), TypeError, r"`hyperparameters\(\)` of Undescribed"),
        (build_model(Impostor), TypeError, "would be loaded as the built-in. Rename"),
        (build_model(Misdescribed), ValueError, "`network.*` must be float32 of shape"),
        (
            changed(lambda m: m.network.slope, lambda _: 2.0, Sloped),
            ValueError,
            "of Sloped must return every argument",
        ),
        (
            changed(lambda m: m.loc, lambda loc: loc + 1j),
            TypeError,
            "types.*got complex64 at loc",
        ),
        (
            changed(lambda m: m.loc, lambda loc: loc.astype(jnp.float16)),
            ValueError,
            "`loc` must be float32.*got float16",
        ),
        (
            changed(lambda m: m.loc, lambda loc: loc * jnp.nan),
            ValueError,
            "`loc` must be finite; got 3 NaN.*Nothing was written",
        ),
        (
            changed(lambda m: m.network.readout, lambda w: w.at[0].set(jnp.inf)),
            ValueError,
            "`network.readout` must be finite",
        ),
        (
            changed(lambda m: m.scale, lambda scale: 0.0 * scale),
            ValueError,
            "`scale` must be positive; got 3 values of 0 or less",
        ),
        (
            changed(lambda m: m.base.variances, lambda v: -v),
            ValueError,
            "`base.variances` must be positive",
        ),
        (
            changed(lambda m: m.base.axes, lambda axes: 2.0 * axes),
            ValueError,
            "`base.axes` must be orthogonal",
        ),
        (replaced(reach=-1.0), ValueError, "`reach` must be positive"),
        (replaced(uses_network="no"), ValueError, "`uses_network` must be True or"),
        (replaced(noise_range=(2.0, 1.0)), ValueError, "`noise_range` must increase"),
        (replaced(noise_range=(0.1, np.inf)), TypeError, "JSON can hold"),
        (
            replaced(sites=(SiteSpec("a", (2,), ("real",)),)),
            ValueError,
            r"`sites` must fill the event shape \(3,\)",
        ),
        (
            replaced(base=noised_mixture([0.3, 0.6], *MIXTURE)),
            ValueError,
            "`base.log_weights` must be logs of weights with the sum 1",
        ),
        (
            replaced(
                network=EnergyMLP((3,), width=8, condition_shape=(2,), key=jr.key(0))
            ),
            ValueError,
            "`network` must be made for the condition",
        ),
    ],
)
def test_what_cannot_be_saved(tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        save(tmp_path / "x.rtk", model)
    assert os.listdir(tmp_path) == []


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a file that exists; got"):
        load(tmp_path / "nothing.rtk")


@pytest.mark.parametrize(
    "networks", [OwnNetwork, [3], [Impostor], [OwnNetwork, type("OwnNetwork", (), {})]]
)
def test_networks_are_classes_with_names_of_their_own(saved, networks):
    with pytest.raises(TypeError, match="`networks` must"):
        load(saved, networks=networks)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\nworld", pickle.dumps([1, 2]), b"[1, 2]\n", b"PK\3\4", None],
)
def test_what_is_no_such_file(tmp_path, content):
    path = tmp_path
    if content is not None:
        path = tmp_path / "x.rtk"
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}.* (Give|got)"):
        load(path)
