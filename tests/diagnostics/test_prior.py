"""check_prior: silent where the density is right, and says what is wrong elsewhere."""

import jax.random as jr
import numpy as np
import pandas as pd
import pytest
from numpyro.distributions import constraints

import numpyro_rtk as rtk
from numpyro_rtk.diagnostics import prior

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


SENTENCES = {
    "no density": "rows have no density",
    "perhaps no density": "may have no density",
    "unmixed": "have not mixed",
    "integral": "No finite integral",
    "normalised": "integrates to exp",
    "gaussian": "A Gaussian fits the held-out rows better",
    "mixture": "A Gaussian mixture fits the held-out rows better",
    "groups": "weights of modes are not to be trusted",
    "moments": "Means or spreads",
    "memorised": "the rows are memorised",
}


def said(found):
    """Which sentences the report has; every one it has is listed above."""
    names = [n for p in found.problems for n, text in SENTENCES.items() if text in p]
    assert len(names) == len(found.problems)
    return set(names)


@pytest.fixture(scope="module")
def right():
    return rtk.check_prior(mixture(), ROWS, training=ROWS[:700] + 1e-6)


def test_the_truth_has_no_problems(right):
    """The run in which none of the sentences may appear; by the exchange itself."""
    assert said(right) == set()
    value, error = right.offset
    assert error < 0.03
    assert abs(value) < 5.0 * error
    # far from a Gaussian, and no better than the right mixture by EM can be
    assert right.gaussian[0] > 10.0 * right.gaussian[1]
    assert abs(right.mixture[0]) < 0.2
    assert right.group_tv[0] < 0.08
    assert right.rhat < 1.1
    assert 0.9 < right.sd_ratio[0] <= right.sd_ratio[1] < 1.1
    for sentence in ("nothing found", "held-out log density", "energy distance"):
        assert sentence in str(right)


@pytest.fixture
def exact(monkeypatch):
    """Independent draws of a mixture in the place of the exchange's: no compilation."""

    def own_draws(key, density, start):
        chains = prior._CHAINS, prior._DRAWS
        return np.asarray(density.sample(key, chains), float), (0.0, 0.01)

    monkeypatch.setattr(prior, "_own_draws", own_draws)


def narrow_copies(rows):
    covariances = np.broadcast_to(1e-3 * np.eye(2), (len(rows), 2, 2))
    weights = np.ones(len(rows)) / len(rows)
    return rtk.GaussianMixture(weights, rows, covariances, standardise=True)


def two_coordinates(third):
    """The mixture beside an independent normal variable of mean 0 or 1."""
    covariances = np.zeros((6, 3, 3))
    covariances[:, :2, :2] = np.tile(COVARIANCES, (2, 1, 1))
    covariances[:, 2, 2] = 0.3
    means = np.c_[np.tile(MEANS, (2, 1)), np.repeat([0.0, 1.0], 3)]
    density = rtk.GaussianMixture(np.tile([0.1, 0.25, 0.15], 2), means, covariances)
    return density, np.c_[ROWS, third]


FEWER = ROWS[:600]
FAR = 0.5 * np.eye(2)[0]
BROAD = rtk.GaussianMixture([1.0], ROWS.mean(0)[None], np.cov(ROWS.T)[None])
BROADER = rtk.GaussianMixture([1.0], ROWS.mean(0)[None], 3.0 * np.cov(ROWS.T)[None])
# density, held-out rows, training rows, sentences
WRONG = {
    "nothing": (mixture(), ROWS, ROWS[:700] + 1e-6, set()),
    "weights": (mixture((0.5, 0.2, 0.3)), ROWS, None, {"groups", "mixture", "moments"}),
    "a little weight": (mixture((0.22, 0.49, 0.29)), FEWER, None, set()),
    "one Gaussian": (BROAD, FEWER, None, {"mixture", "groups"}),
    "too broad": (BROADER, FEWER, None, {"gaussian", "mixture", "moments"}),
    "moved a little": (mixture(means=MEANS + 0.05 * FAR), FEWER, None, set()),
    "copies": (
        narrow_copies(ROWS[:60]),
        ROWS[60:],
        ROWS[:60],
        {"memorised", "gaussian", "mixture"},
    ),
    "two values": (
        *two_coordinates(np.arange(1500) % 2.0),
        None,
        {"no density", "mixture"},
    ),
    "one decimal": (mixture(), np.round(ROWS, 1), None, {"perhaps no density"}),
    "two decimals": (mixture(), np.round(FEWER, 2), None, set()),
}


@pytest.mark.parametrize(
    ("density", "rows", "training", "sentences"), WRONG.values(), ids=WRONG
)
def test_what_is_said(exact, density, rows, training, sentences):
    found = rtk.check_prior(density, rows, training=training)
    assert said(found) >= sentences
    assert sentences or not found.problems
    assert np.isnan(found.memorised) == (training is None)


def test_every_sentence_is_said_and_unsaid():
    here = set().union(*(case[-1] for case in WRONG.values()))
    elsewhere = {"unmixed", "integral", "normalised"}  # in the tests below
    assert here | elsewhere == set(SENTENCES)


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
    assert said(found) == {"normalised"}
    assert any("integrates to exp(+0.7" in p or "exp(+0.6" in p for p in found.problems)


def test_an_integral_that_is_not_finite_is_said(exact, monkeypatch):
    own_draws = prior._own_draws

    def run_away(key, density, start):
        draws, _ = own_draws(key, density, start)
        return draws, (np.inf, np.nan)

    monkeypatch.setattr(prior, "_own_draws", run_away)
    assert said(rtk.check_prior(mixture(), ROWS)) == {"integral"}


def test_draws_that_did_not_mix_are_not_held_against_the_density():
    """A mode of sd 1e-4 beside one of 1: the exchange's lowest level is .05 wide."""
    islands = rtk.GaussianMixture(
        [0.5, 0.5], [[0, 0], [1, 1]], [1e-8 * np.eye(2), np.eye(2)], standardise=True
    )
    found = rtk.check_prior(islands, np.asarray(islands.sample(jr.key(0), (1000,))))
    assert found.rhat > 1.3
    assert said(found) == {"unmixed"}
    assert f"R-hat of the own draws: {found.rhat:.2f}" in str(found)


def test_figure(right):
    figure = right.plot()
    assert len(figure.axes) == 3


def test_rows_on_a_support_are_taken_as_they_are(exact, monkeypatch):
    rows = {"scale": np.exp(ROWS[:, 0]), "place": ROWS[:, 1]}
    model_, _ = rtk.fit(
        jr.key(0),
        rows,
        support={"scale": constraints.positive},
        num_steps=20,
        training=rtk.Training(num_components=1),
        progress_bar=False,
    )
    monkeypatch.setattr(
        prior, "_own_draws", lambda *_: (ROWS[:960].reshape(32, 30, 2), (0.0, 0.1))
    )
    # dicts may come in any order, and columns of a table too
    for held_out in (
        {"place": rows["place"], "scale": rows["scale"]},
        pd.DataFrame({"place": rows["place"], "scale": rows["scale"]}),
    ):
        found = rtk.check_prior(model_, held_out)
        np.testing.assert_allclose(
            np.sort(found.rows[:, 0]), np.sort(ROWS[:, 0]), atol=1e-4
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:50], "at least 100 rows"),
        (ROWS[:, :1], "rows of shape"),
        (np.where(ROWS > 3, np.nan, ROWS) * np.nan, "must be finite"),
        (ROWS * [1.0, 0.0], r"`held_out` must vary in every coordinate.*index \(1,\)"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        rtk.check_prior(mixture(), rows)
