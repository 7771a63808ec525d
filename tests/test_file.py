"""Damaged files, of models and of checkpoints: refused by name, or equal to the last bit.

2,000 random changes and 500 rewritten files with a digest that fits, the same every day.
The random ones show the digest, the rewritten ones the checks behind it; each is turned
off once, and then files come through that are silently different.
"""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk import _file
from numpyro_rtk.gaussian_product import noised_product
from numpyro_rtk.gaussians import noised_gaussian, noised_mixture
from numpyro_rtk.io import load, save
from numpyro_rtk.networks import EnergyMLP, EnergyModel, ScoreMLP, ScoreModel
from numpyro_rtk.networks.condition import Conditional, Conditioning
from numpyro_rtk.networks.site import SiteSpec
from numpyro_rtk.training.checkpoint import Progress, load_progress, save_progress
from numpyro_rtk.training.loop import init
from tests import damage

NUM_RANDOM, NUM_REWRITTEN = 400, 100  # of each of the five files below
DIM = 3
WIDE = noised_mixture([0.3, 0.7], np.eye(2), np.stack([np.eye(2)] * 2) * 0.2)
NARROW = noised_mixture([1.0], [[0.4]], [[[0.5]]])
GAUSSIAN = noised_gaussian(jnp.eye(DIM), jnp.linspace(0.3, 1.0, DIM))


def network(network_class, **options):
    """With weights that are not those of the constructor."""
    made = network_class((DIM,), width=4, depth=2, key=jr.key(1), **options)
    weights = lambda leaf: jr.normal(jr.key(2), leaf.shape)
    return jax.tree.map(weights, made)


def build(model_class, network, base, **options):
    loc, scale = jnp.arange(1.0, 4.0), jnp.array([0.5, 2.0, 3.0])
    return model_class(network, base, loc, scale, (0.02, 20.0), **options)


def conditional():
    sites = (
        SiteSpec("a", (), ("real",)),
        SiteSpec("b", (2,), ("interval", 0.0, 2.0)),
    )
    numbers = jnp.array([0.5, 2.0])
    conditioning = Conditioning(numbers, numbers, jnp.ones((DIM, 2)))
    options = {"sites": sites, "conditioning": conditioning}
    made = network(EnergyMLP, condition_shape=(2,))
    return build(EnergyModel, made, GAUSSIAN, **options)


MODELS = {
    "mixture": lambda: build(
        EnergyModel,
        network(EnergyMLP),
        noised_mixture([0.3, 0.7], np.eye(3)[:2], np.stack([np.eye(3)] * 2) * 0.2),
        reach=5.0,
    ),
    "product": lambda: build(
        EnergyModel,
        network(EnergyMLP),
        noised_product([np.eye(3)[:, :2], np.eye(3)[:, 2:]], [WIDE, NARROW]),
        uses_network=False,
    ),
    "score": lambda: build(ScoreModel, network(ScoreMLP), GAUSSIAN),
    "conditional": conditional,
}
FINGERPRINT = {"key": [0, 7], "samples": [[60, 2], 123], "num_steps": 750}


def start():
    return Progress.start(init(build(EnergyModel, network(EnergyMLP), GAUSSIAN)), 3.0)


def progressed():
    """After three evaluations, the second of which was the best."""
    progress = start()
    state = jax.tree.map(lambda leaf: 0.5 * abs(leaf) + 0.1, progress.state)
    for step, loss in ((250, 2.0), (500, 1.0), (750, 1.5)):
        counts = lambda state: (state.step, state.opt_state[1].count)
        state = eqx.tree_at(counts, state, (jnp.asarray(step, jnp.int32),) * 2)
        entry = {"loss": loss, "validation_loss": loss, "wall_time": step / 100}
        progress = progress.advanced(state, step=step, **entry)
    return progress


class Subject:
    """A sound file, what it holds, and how it is read."""

    def __init__(self, name, folder):
        self.path = folder / f"{name}.rtk"
        if name == "checkpoint":
            self.truth = progressed()
            save_progress(self.path, FINGERPRINT, self.truth)
            first = start()
            self.read = lambda: load_progress(self.path, FINGERPRINT, first)
        else:
            self.truth = MODELS[name]()
            save(self.path, self.truth)
            self.read = lambda: load(self.path)
        self.content = self.path.read_bytes()

    def outcome(self, content):
        """Of reading this in the file's place."""
        self.path.write_bytes(content)
        try:
            found = self.read()
        except ValueError as error:
            return "raised" if str(self.path) in str(error) else f"unclear: {error}"
        except BaseException as error:  # KeyboardInterrupt would be a finding as well
            return f"bare: {error!r:.200}"
        return "equal" if identical(found, self.truth) else "different"

    def outcomes(self, contents):
        return collections.Counter(map(self.outcome, contents))

    def random_changes(self):
        rng = np.random.default_rng(0)
        make = lambda: damage.changed_bytes(rng, self.content)
        return [make() for _ in range(NUM_RANDOM)]

    def rewritten(self):
        return [
            *damage.edited_containers(self.content),
            *damage.edited_headers(self.content, is_legitimate),
            *damage.edited_arrays(self.content),
        ]


def identical(one, two):
    """To the last bit, types and plain attributes included."""
    ours, theirs = jax.tree.flatten(one), jax.tree.flatten(two)
    as_bytes = lambda leaf: (
        type(leaf),
        np.asarray(leaf).dtype,
        np.asarray(leaf).tobytes(),
    )
    return str(ours[1]) == str(theirs[1]) and (
        list(map(as_bytes, ours[0])) == list(map(as_bytes, theirs[0]))
    )


def is_legitimate(path, value):
    """Whether a header with this value describes another model, as good as the first."""
    is_far = value == 1e18 and isinstance(value, float)
    if path[0] == "reach":
        return value is None or is_far
    if path[0] == "sites" and len(path) > 2:
        return value == "x" if path[2] == 0 else path[3:] == (2,) and is_far
    if path == ("uses_network",):
        return value is True
    return path == ("noise_range", 1) and is_far


NAMES = [*MODELS, "checkpoint"]


@pytest.fixture(params=NAMES)
def subject(request, tmp_path):
    return Subject(request.param, tmp_path)


def test_a_sound_file_comes_back(subject):
    assert subject.outcome(subject.content) == "equal"
    text, arrays = damage.opened(subject.content)
    assert subject.outcome(damage.rewritten(text, arrays)) == "equal"


def test_random_damage(subject):
    found = subject.outcomes(subject.random_changes())
    assert set(found) <= {"raised", "equal"}
    assert found["raised"] > 0.9 * NUM_RANDOM  # some changes change nothing


def test_rewritten_contents(subject):
    every = subject.rewritten()
    chosen = np.random.default_rng(0).permutation(len(every))[:NUM_REWRITTEN]
    assert len(chosen) == NUM_REWRITTEN
    found = subject.outcomes(every[index] for index in chosen)
    assert set(found) <= {"raised", "equal"}


def test_without_the_digest_another_density_loads(subject, monkeypatch):
    """Negative control."""
    contents = list(damage.stale(subject.content))
    assert set(subject.outcomes(contents)) == {"raised"}
    monkeypatch.setattr(_file, "_check_digest", lambda content: None)
    assert subject.outcomes(contents)["different"] > 0


@pytest.mark.parametrize("name", MODELS)
def test_without_its_checks_no_density_loads(tmp_path, monkeypatch, name):
    """Negative control: NaN, infinite and negative arrays."""
    subject = Subject(name, tmp_path)
    contents = list(damage.edited_arrays(subject.content))
    monkeypatch.setattr(Conditional, "check", lambda model_: None)
    assert subject.outcomes(contents)["different"] > 10
