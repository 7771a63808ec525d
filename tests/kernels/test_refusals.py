"""Bad input is refused at once, by a message that names the argument and the remedy."""

import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_rtk as rtk
from tests.kernels.conftest import MIXTURE, SMALL, make_mcmc, model

DATA = jnp.array(0.5)


class ScoreOnly:
    event_shape = (2,)

    def score(self, x, t):
        return MIXTURE.score(x, t)


SIMPSON = rtk.MALA(acceptance="simpson")

CONSTRUCTION = {
    "neither": (lambda: rtk.RTKMALA(), ValueError, "Exactly one of .* got neither"),
    "both": (
        lambda: rtk.RTKMALA(model, score=MIXTURE),
        ValueError,
        "Exactly one of .* got both",
    ),
    "model not callable": (
        lambda: rtk.RTKMALA(MIXTURE),
        TypeError,
        "`model` must be a NumPyro model.*`score=`",
    ),
    "not a density": (
        lambda: rtk.RTKULD(score=3.0),
        TypeError,
        "`score` must be an object with `event_shape`",
    ),
    "segments": (
        lambda: rtk.RTKMALA(model, num_segments=0),
        ValueError,
        "`num_segments` must be at least 1; got 0",
    ),
    "segments not an integer": (
        lambda: rtk.RTKMALA(model, num_segments=2.5),
        TypeError,
        "`num_segments` must be an integer; got 2.5",
    ),
    "predictor": (
        lambda: rtk.RTKMALA(score=MIXTURE, predictor="euler"),
        ValueError,
        '`predictor` must be "gaussian" or "multistep"',
    ),
    "predictor without a weight": (
        lambda: rtk.RTKMALA(model, predictor="multistep"),
        ValueError,
        '`predictor` must be "gaussian" with `model=`',
    ),
    "predictor without a density": (
        lambda: rtk.RTKMALA(score=MIXTURE, corrected=True, predictor="multistep"),
        ValueError,
        '`predictor` must be "gaussian" with `model=`',
    ),
    "predictor with steps above": (
        lambda: rtk.RTKMALA(score=MIXTURE, num_steps=(2, 1), predictor="multistep"),
        ValueError,
        "`num_steps` must have steps in the lowest segment only",
    ),
    "steps": (
        lambda: rtk.RTKMALA(model, num_steps=-1),
        ValueError,
        "`num_steps` must be at least 0; got -1",
    ),
    "too many step counts": (
        lambda: rtk.RTKMALA(model, num_segments=2, num_steps=(1, 1, 1)),
        ValueError,
        "at most `num_segments` = 2 entries; got 3",
    ),
    "candidates": (
        lambda: rtk.RTKMALA(model, num_candidates=0),
        ValueError,
        "`num_candidates` must be at least 1; got 0",
    ),
    "step size": (
        lambda: rtk.RTKMALA(model, step_size=0.0),
        ValueError,
        "`step_size` must be positive",
    ),
    "target": (
        lambda: rtk.RTKMALA(model, target_accept_prob=1.0),
        ValueError,
        "`target_accept_prob` must be between 0 and 1",
    ),
    "ladder falls": (
        lambda: rtk.RTKMALA(model, ladder=[0.0, 1.0, 0.5]),
        ValueError,
        "`ladder` must increase strictly",
    ),
    "ladder starts late": (
        lambda: rtk.RTKMALA(model, ladder=[0.1, 1.0]),
        ValueError,
        "`ladder` must start at 0",
    ),
    "ladder name": (
        lambda: rtk.RTKMALA(model, ladder="linear"),
        ValueError,
        "`ladder` must be one of",
    ),
    "ladder and segments": (
        lambda: rtk.RTKMALA(model, ladder=[0.0, 1.0], num_segments=3),
        ValueError,
        "`ladder` must have `num_segments` . 1 = 4 times; got 2",
    ),
    "acceptance": (
        lambda: rtk.RTKMALA(model, inner=rtk.MALA(acceptance="magic")),
        ValueError,
        "`acceptance` must be one of",
    ),
    "inexact correction": (
        lambda: rtk.RTKMALA(model, inner=SIMPSON, corrected=True),
        ValueError,
        "`corrected=True` needs",
    ),
    "unadjusted correction": (
        lambda: rtk.RTKULD(model, corrected=True),
        ValueError,
        "`corrected` must be False with unadjusted inner steps.*adjusted=True",
    ),
    "friction": (
        lambda: rtk.RTKULD(model, inner=rtk.ULD(friction=-1.0)),
        ValueError,
        "`friction` must be positive",
    ),
    "inner of a name": (
        lambda: rtk.RTKMALA(model, inner="mala"),
        TypeError,
        "`inner` must be an inner sampler, such as `rtk.MALA.*got 'mala'",
    ),
    "inner of a class": (
        lambda: rtk.RTKReplicaExchange(model, inner=rtk.MALA),
        TypeError,
        "`inner` must be an inner sampler.*an instance.*got <class",
    ),
    "unadjusted inner": (
        lambda: rtk.RTKMALA(model, inner=rtk.ULD().unadjusted()),
        ValueError,
        "`inner` must have a Metropolis test.*got UnadjustedULD",
    ),
    "inner of another kernel": (
        lambda: rtk.RTKULD(model, inner=rtk.MALA()),
        TypeError,
        "`inner` must be an `rtk.ULD` in RTKULD.*got MALA.*RTKMALA",
    ),
    "inexact inner": (
        lambda: rtk.RTKReplicaExchange(model, inner=SIMPSON),
        ValueError,
        "`inner` must have a Metropolis test that reads the energy.*got MALA",
    ),
    "adjusted": (
        lambda: rtk.RTKULD(model, adjusted=1),
        TypeError,
        "`adjusted` must be True or False; got 1",
    ),
    "published on another ladder": (
        lambda: rtk.RTKMALA.as_published(model, ladder="angle"),
        TypeError,
        "multiple values for keyword argument 'ladder'",
    ),
    "path with score": (
        lambda: rtk.RTKMALA(score=MIXTURE, path="gaussian"),
        ValueError,
        "`path` must be None with `score`",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTION.values(), ids=CONSTRUCTION.keys())
def test_refused_at_construction(case):
    build, error, message = case
    with pytest.raises(error, match=message):
        build()


def _discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
    numpyro.sample("y", dist.Normal(x[0] + k), obs=y)


def _untraceable(y):
    x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
    scale = 1.0 if x[0] > 0 else 2.0
    numpyro.sample("y", dist.Normal(x[1], scale), obs=y)


def _nan_everywhere(y):
    x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
    numpyro.factor("nothing", jnp.nan * x[0])


def _score_only(y):
    x = numpyro.sample("x", rtk.LearnedPrior(ScoreOnly()))
    numpyro.sample("y", dist.Normal(x[0]), obs=y)


def _observed_only(y):
    numpyro.sample("y", dist.Normal(), obs=y)


AT_RUN = {
    "no latent site": (_observed_only, ValueError, "at least one latent site"),
    "discrete": (_discrete, ValueError, "'k' is discrete.*Sum it out"),
    "untraceable": (_untraceable, TypeError, "must be traceable.*jnp.where"),
    "NaN": (_nan_everywhere, RuntimeError, "Cannot find a start of finite density"),
    "score only": (_score_only, TypeError, "needs an energy.*rtk.fit"),
}


@pytest.mark.parametrize("case", AT_RUN.values(), ids=AT_RUN.keys())
def test_refused_at_run(case):
    bad, error, message = case
    with pytest.raises(error, match=message):
        make_mcmc(rtk.RTKMALA(bad, **SMALL)).run(jr.key(0), DATA)


def test_score_only_density_is_refused_by_exact_mala_and_served_by_the_others():
    with pytest.raises(TypeError, match=r'MALA\(acceptance="simpson"\)'):
        make_mcmc(rtk.RTKMALA(score=ScoreOnly())).run(jr.key(0))
    for kernel in (
        rtk.RTKMALA(score=ScoreOnly(), inner=SIMPSON, num_segments=6),
        rtk.RTKULD(score=ScoreOnly(), num_segments=6),
    ):
        mcmc = make_mcmc(kernel)
        mcmc.run(jr.key(0))
        assert bool(jnp.all(jnp.isfinite(mcmc.get_samples())))
        assert "log_weight" not in mcmc.get_extra_fields()


INIT_PARAMS = {
    "not a dict": (jnp.zeros(2), "`init_params` must be a dict"),
    "missing site": ({"x": jnp.zeros(2)}, "one unconstrained value per latent site"),
    "wrong shape": (
        {"x": jnp.zeros(3), "sigma": jnp.zeros(())},
        r"`init_params\['x'\]` must have shape \(2,\)",
    ),
}


@pytest.mark.parametrize("case", INIT_PARAMS.values(), ids=INIT_PARAMS.keys())
def test_init_params_of_the_wrong_structure(case):
    params, message = case
    with pytest.raises(ValueError, match=message):
        make_mcmc().run(jr.key(0), DATA, init_params=params)


@pytest.mark.parametrize(
    ("params", "got"),
    [
        (jnp.zeros(3), r"got shape \(3,\)"),
        ({"x": jnp.zeros(2)}, r"got a dict of \['x'\]"),
    ],
)
def test_init_params_of_a_density_that_are_no_array_of_its_shape(params, got):
    kernel = rtk.RTKMALA(score=MIXTURE, num_segments=3)
    message = r"`init_params` must be an array of shape \(2,\) per chain; " + got
    with pytest.raises(ValueError, match=message):
        kernel.init(jr.key(0), 0, params, (), {})


def test_likelihood_that_is_nan_in_places_is_sampled_where_it_is_finite():
    def half(y):
        x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
        numpyro.factor("root", jnp.log(x[0]))  # NaN for x[0] < 0

    mcmc = make_mcmc(rtk.RTKMALA(half, **SMALL))
    mcmc.run(jr.key(0), DATA)
    assert bool(jnp.all(mcmc.get_samples()["x"][:, 0] > 0))
