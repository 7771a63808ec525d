"""distill: an energy from a score, what it cost, and what it refuses or warns of.

The teacher has the exact score of three modes of different widths and unequal weights in
2 dimensions. The student's density is compared with the exact one at 4,000 exact draws, and
its modes' weights by quadrature.
"""

import dataclasses
import types
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import distillation
from numpyro_rtk.distillation import _to_compile
from numpyro_rtk.training import fit as fit_module
from numpyro_rtk.training.losses import slopes_of_score, variance_exploding
from numpyro_rtk.training.score_error import score_error

WEIGHTS = np.array([0.5, 0.35, 0.15])
MEANS = np.array([[-3.0, 0.0], [2.0, 1.0], [1.0, -3.0]])
COVARIANCES = [0.04 * np.eye(2), [[0.5, 0.2], [0.2, 0.3]], np.eye(2)]
MIXTURE = rtk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
POINTS = MIXTURE.sample(jr.key(1), (4000,))


class ScoreOnly(eqx.Module):
    """A mixture without its energy, and perhaps a score that is no density's."""

    of: rtk.GaussianMixture
    factor: jax.Array

    @property
    def event_shape(self):
        return self.of.event_shape

    def score(self, x, t):
        return self.factor * self.of.score(x, t)


TEACHER = ScoreOnly(MIXTURE, jnp.ones(()))


def student(
    teacher=TEACHER, samples=None, *, num_steps=500, num_samples=4000, **options
):
    """One Gaussian is the base: a mixture would leave nothing to learn."""
    return rtk.distill(
        jr.key(0),
        teacher,
        samples,
        num_samples=num_samples,
        network=rtk.EnergyMLP((2,), width=96, depth=2, key=jr.key(2)),
        num_steps=num_steps,
        batch_size=256,
        learning_rate=0.01,
        progress_bar=False,
        training=rtk.Training(num_components=1),
        **options,
    )


def weights_of(density):
    """Of the half planes and quadrants of the modes, by quadrature; and all mass."""
    side = np.linspace(-7.0, 7.0, 561)  # a step is a seventh of the narrowest sd
    x = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    values = np.exp(
        np.asarray(eqx.filter_jit(density.log_density)(jnp.asarray(x), 0.0))
    )
    values = values * (side[1] - side[0]) ** 2
    mode = np.where(x[:, 0] < -1.5, 0, np.where(x[:, 1] > -1.0, 1, 2))
    found = np.bincount(mode, weights=values)
    return found / found.sum(), found.sum()


EXACT, _ = weights_of(MIXTURE)


def error_of(density):
    return np.asarray(
        density.log_density(POINTS, 0.0) - MIXTURE.log_density(POINTS, 0.0)
    )


@pytest.fixture(scope="module", autouse=True)
def blocks_of_one_size():
    """One program draws the samples and what rows are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "_BLOCK", distillation._NUM_COMPARED)
        yield


@pytest.fixture(scope="module")
def learned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a good student is not accused
        return student()


def test_the_density_is_that_of_the_score(learned):
    model, history = learned
    assert isinstance(model, rtk.EnergyModel)
    assert model.uses_network
    assert history["best_step"] > 0
    assert error_of(model).std() < 0.25  # measured .11
    found, mass = weights_of(model)
    np.testing.assert_allclose(found, EXACT, atol=0.02)  # measured .009
    np.testing.assert_allclose(mass, 1.0, atol=0.06)  # measured .02


def test_the_report_says_what_it_cost(learned):
    error = learned.error
    assert learned.model is learned[0]
    assert learned.history is learned[1]
    assert error.score.shape == error.drift.shape == error.noise.shape == (10,)
    # the same at points of its own: mean squares of 4,000 rows at one level
    model, level = learned.model, 4
    log_r = jnp.log(jnp.float32(error.noise[level]))
    z = (POINTS - model.loc) / model.scale
    y = z + error.noise[level] * jr.normal(jr.key(3), z.shape)

    def off(y):
        noise, _ = slopes_of_score(TEACHER, model, y, log_r, jnp.ones(2))
        return jnp.exp(log_r) * jax.grad(variance_exploding, 1)(model, y, log_r) - noise

    off = np.sqrt(np.mean(np.square(jax.vmap(off)(y))))
    np.testing.assert_allclose(error.score[level], off, rtol=0.2)
    # and it stands for the error of the log density
    about = np.sqrt(2.0 * error.divergence)
    assert 0.4 * about < error_of(model).std() < 1.5 * about
    text = str(learned)
    assert text == str(error) == repr(error)
    assert text.startswith("noise  score error  drift\n 0.02  ")
    assert text.endswith("- nothing found")
    assert len(text.splitlines()) == 13


def test_it_is_a_function_of_the_key(learned):
    again = student()
    for one, two in zip(
        jax.tree.leaves(eqx.filter(learned.model, eqx.is_array)),
        jax.tree.leaves(eqx.filter(again.model, eqx.is_array)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(again.error.score, learned.error.score)
    np.testing.assert_array_equal(again.error.drift, learned.error.drift)


def test_it_is_an_energy_like_any_other(learned, tmp_path):
    prior = rtk.LearnedPrior(learned.model)
    assert prior.has_energy
    np.testing.assert_array_equal(
        prior.log_prob(POINTS[:5]), learned.model.log_density(POINTS[:5], 0.0)
    )
    rtk.save(tmp_path / "student.rtk", learned.model)
    again = rtk.load(tmp_path / "student.rtk")
    np.testing.assert_array_equal(
        again.log_density(POINTS[:5], 0.1), learned.model.log_density(POINTS[:5], 0.1)
    )


def test_rows_say_where_and_not_how_much():
    """Half of the rows at the mode of weight .15, where 15 % would be."""
    mode = np.argmin(np.linalg.norm(POINTS[:, None] - MEANS, axis=-1), axis=1)
    few = np.flatnonzero(mode == 2)
    rows = np.concatenate([POINTS[:2000], POINTS[np.resize(few, 2000)]])
    rows = rows + 0.01 * np.random.default_rng(0).normal(size=rows.shape)
    model, _ = student(samples=rows)
    found, mass = weights_of(model)
    np.testing.assert_allclose(found, EXACT, atol=0.03)
    np.testing.assert_allclose(mass, 1.0, atol=0.1)


def test_rows_that_miss_a_mode_are_named():
    """The one of weight .15; of the others the student is right."""
    rows = MIXTURE.sample(jr.key(4), (6000,))
    rows = rows[rows[:, 1] - rows[:, 0] > -2.0][:4000]
    assert len(rows) == 4000
    with pytest.warns(UserWarning, match="`samples` do not reach all"):
        student(samples=rows)


def test_a_student_that_has_not_learned_is_named():
    with pytest.warns(UserWarning, match=r"score error is large.*Raise `num_steps`"):
        error = student(num_steps=2).error
    assert error.score.max() > 0.2
    assert str(error).endswith(f"- {error.problems[-1]}")


def test_a_score_of_no_density_is_named(learned, monkeypatch):
    """Half as large again, it is no score of one density with more and less noise."""
    monkeypatch.setattr(distillation, "_own_draws", lambda *_: np.asarray(POINTS))
    with pytest.warns(UserWarning, match="score error is large.*train the score"):
        error = student(ScoreOnly(MIXTURE, 1.5 * jnp.ones(()))).error
    assert error.divergence > 5.0 * learned.error.divergence


def test_noise_that_ends_early_is_named(learned):
    """The same student, said to have been trained up to noise of 2."""
    model = dataclasses.replace(learned.model, noise_range=(0.02, 2.0))
    error = score_error(jr.key(0), model, TEACHER, np.asarray(POINTS[:500]))
    assert "The noise ends at 2 of the samples' spread" in error.problems[0]
    error = score_error(jr.key(0), learned.model, TEACHER, np.asarray(POINTS[:500]))
    assert error.problems == ()


class FirstTermAlone(eqx.Module):
    """The loss without what carries the normalising constant."""

    teacher: ScoreOnly

    def __call__(self, model, z0, e, log_r):
        y = z0 + jnp.exp(log_r) * e
        noise, _ = slopes_of_score(self.teacher, model, y, log_r, jnp.ones_like(y))
        by_point = jax.grad(variance_exploding, argnums=1)(model, y, log_r)
        return jnp.mean((jnp.exp(log_r) * by_point - noise) ** 2)


def test_without_the_second_term_the_weights_are_lost_and_that_is_seen(monkeypatch):
    monkeypatch.setattr(fit_module, "ScoreDistillation", FirstTermAlone)
    with pytest.warns(UserWarning, match="log density drifts by"):
        model, _ = student()
    found, _ = weights_of(model)
    assert np.abs(found - EXACT).sum() / 2 > 0.1


class Own:
    """A user's own object: no pytree, and it can change in place."""

    event_shape = (2,)
    factor = 1.0

    def score(self, x, t):
        return -self.factor * x


def test_what_can_change_in_place_is_not_known_again():
    own = Own()
    assert _to_compile(TEACHER) is TEACHER
    assert _to_compile(own) is not _to_compile(own)
    first = _to_compile(own).score(jnp.ones(2), 0.0)
    own.factor = 2.0
    np.testing.assert_array_equal(_to_compile(own).score(jnp.ones(2), 0.0), 2 * first)


class Faulty(Own):
    """With one fault in its score."""

    def __init__(self, fault):
        self.fault = fault

    def score(self, x, t):
        return self.fault(x)


def fault(text):
    raise RuntimeError(text)


SCORE_NETWORK = rtk.ScoreMLP((2,), width=4, depth=1, key=jr.key(0))
REFUSALS = {
    "no density": ((object(),), {}, TypeError, "`score_model` must be an object with"),
    "an energy": (
        (MIXTURE,),
        {},
        TypeError,
        "`score_model`.*nothing to distill.*as it is",
    ),
    "NaN": (
        (Faulty(lambda x: x * jnp.nan),),
        {},
        ValueError,
        "finite score.*check_prior",
    ),
    "shape": ((Faulty(lambda x: x[:1]),), {}, ValueError, r"of x, \(2,\); got \(1,\)"),
    "raises": ((Faulty(lambda x: fault("no")),), {}, ValueError, "RuntimeError: no"),
    "rows' shape": (
        (TEACHER, POINTS[:, :1]),
        {},
        ValueError,
        r"\(2,\); got \(4000, 1\)",
    ),
    "NaN rows": ((TEACHER, POINTS.at[3, 0].set(jnp.nan)), {}, ValueError, "be finite"),
    "a dict": ((TEACHER, {"x": POINTS}), {}, TypeError, "one array.*dict of .'x'"),
    "few rows": ((TEACHER, POINTS[:15]), {}, ValueError, "at least 20 rows; got 15"),
    "no rows": (
        (TEACHER,),
        {"num_samples": 0},
        ValueError,
        "`num_samples`.*at least 1",
    ),
    "a score network": (
        (TEACHER,),
        {"network": SCORE_NETWORK},
        TypeError,
        "`network` must be an energy network",
    ),
    "another scale": (
        (TEACHER,),
        {"training": rtk.Training(standardise="global")},
        ValueError,
        "`standardise` at None",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name):
    arguments, options, error, match = REFUSALS[name]
    with pytest.raises(error, match=match):
        rtk.distill(jr.key(0), *arguments, num_steps=1, progress_bar=False, **options)


def test_the_noise_is_that_of_the_score():
    """A network trained on noise of .1 to 8 of its unit, 3, where rows spread over 1."""
    teacher = types.SimpleNamespace(noise_range=(0.1, 8.0))
    of = lambda options: fit_module._noise_range(
        options, teacher, np.ones(2), np.full(2, 3.0)
    )
    np.testing.assert_allclose(of(rtk.Training()), [0.3, 20.0])
    with pytest.raises(ValueError, match="must overlap with the noise.*0.3 to 24"):
        of(rtk.Training(noise_range=(0.02, 0.2)))
