"""check_prior: silent where the density is right, and says what is wrong elsewhere."""

import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints

import numpyro_rtk as rtk

MEANS = np.array([[-1.5, 0.5], [1.0, -0.5], [0.5, 2.0]])
COVARIANCES = np.array(
    [
        [[0.1, 0.03], [0.03, 0.1]],
        [[0.1, -0.02], [-0.02, 0.2]],
        [[0.05, 0.0], [0.0, 0.1]],
    ]
)


def mixture(weights=(0.2, 0.5, 0.3), means=MEANS):
    return rtk.GaussianMixture(np.array(weights), means, COVARIANCES, standardise=True)


ROWS = np.asarray(mixture().sample(jr.key(3), (1500,)))


@pytest.fixture(scope="module")
def right():
    return rtk.check_prior(mixture(), ROWS, training=ROWS[:700] + 1e-6)


def test_the_truth_has_no_problems(right):
    assert right.problems == ()
    value, error = right.offset
    assert error < 0.03
    assert abs(value) < 5.0 * error
    # far from a Gaussian, and no better than the right mixture by EM can be
    assert right.gaussian[0] > 10.0 * right.gaussian[1]
    assert abs(right.mixture[0]) < 0.2
    assert right.group_tv[0] < 0.08
    assert 0.9 < right.sd_ratio[0] <= right.sd_ratio[1] < 1.1
    for sentence in ("nothing found", "held-out log density", "energy distance"):
        assert sentence in str(right)


def test_wrong_weights_are_said():
    found = rtk.check_prior(mixture((0.5, 0.2, 0.3)), ROWS)
    assert any("weights of modes are not to be trusted" in p for p in found.problems)
    assert np.isnan(found.memorised)


def test_a_density_that_is_not_normalised_is_said():
    class Scaled:
        event_shape = (2,)
        loc, scale = mixture().loc, mixture().scale

        def log_density(self, x, t):
            # the constant is lost on the way from the noise end
            return mixture().log_density(x, t) + 0.7 * np.e ** (-3.0 * t)

        def score(self, x, t):
            return mixture().score(x, t)

    found = rtk.check_prior(Scaled(), ROWS)
    value, error = found.offset
    assert abs(value - 0.7) < 5.0 * error
    assert any("integrates to exp(+0.7" in p or "exp(+0.6" in p for p in found.problems)


def test_memorised_rows_are_said():
    training = ROWS[:60]
    narrow = np.broadcast_to(1e-3 * np.eye(2), (60, 2, 2))
    copy = rtk.GaussianMixture(np.ones(60) / 60, training, narrow, standardise=True)
    found = rtk.check_prior(copy, ROWS[60:], training=training)
    assert found.memorised > 0.8
    assert any("memorised" in problem for problem in found.problems)


def test_figure(right):
    figure = right.plot()
    assert len(figure.axes) == 3


def test_rows_on_a_support_are_taken_as_they_are():
    rows = {"scale": np.exp(ROWS[:, 0]), "place": ROWS[:, 1]}
    model_, _ = rtk.fit(
        jr.key(0),
        rows,
        support={"scale": constraints.positive},
        num_steps=20,
        progress_bar=False,
    )
    # dicts may come in any order
    found = rtk.check_prior(model_, {"place": rows["place"], "scale": rows["scale"]})
    np.testing.assert_allclose(
        np.sort(found.rows[:, 0]), np.sort(ROWS[:, 0]), atol=1e-4
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:50], "at least 100 rows"),
        (ROWS[:, :1], "rows of shape"),
        (np.where(ROWS > 3, np.nan, ROWS) * np.nan, "must be finite"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        rtk.check_prior(mixture(), rows)


def test_a_score_alone_is_refused():
    class ScoreOnly:
        event_shape = (2,)

        def score(self, x, t):
            return -x

    with pytest.raises(TypeError, match="must have an energy"):
        rtk.check_prior(ScoreOnly(), ROWS)
