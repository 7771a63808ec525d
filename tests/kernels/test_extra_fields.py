"""``extra_fields`` of the driver: chains come first, and an unknown name is refused."""

import copy
import pickle

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.kernels.exchange_state import ExchangeState, Tuned
from numpyro_rtk.kernels.particle_state import ParticleAdaptState, ParticleState
from numpyro_rtk.kernels.state import AdaptState, RTKState
from tests.kernels.conftest import SMALL, make_mcmc, model

DATA, CHAINS, DRAWS = jnp.array(0.5), 3, 4
KERNELS = {
    "exchange": (
        lambda: rtk.RTKReplicaExchange(model, num_levels=3, num_particles=64),
        ExchangeState,
        [f"adapt_state.{name}" for name in Tuned._fields],
    ),
    "mala": (
        lambda: rtk.RTKMALA(model, **SMALL),
        RTKState,
        [
            f"adapt_state.{name}"
            for name in (
                "step_size",
                "second_moment",
                "likelihood_variance",
                "frame.loc",
                "frame.scale",
                "frame.origin",
            )
        ],
    ),
    "particles": (
        lambda: rtk.RTKParticleGibbs(model, num_particles=8, num_levels=4),
        ParticleState,
        [
            f"adapt_state.{name}"
            for name in (
                "likelihood_variance",
                "frame.loc",
                "frame.scale",
            )
        ],
    ),
}
# whole subtrees, and the key; `shared` is one for all vectorised chains
NOT_ARRAYS = {"z", "adapt_state", "shared", "rng_key"}


@pytest.mark.parametrize("method", ["vectorized", "sequential"])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_every_field_has_chains_and_draws_first(case, method):
    build, state, tuned = case
    names = [name for name in state._fields if name not in NOT_ARRAYS] + tuned
    mcmc = make_mcmc(
        build(), num_chains=CHAINS, chain_method=method, num_warmup=2, num_samples=DRAWS
    )
    mcmc.run(jr.key(0), DATA, extra_fields=(*names, "z.x"))
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert set(names) <= set(fields)
    for name in (*names, "z.x"):
        assert np.shape(fields[name])[:2] == (CHAINS, DRAWS), name
    # each chain keeps its own: the iteration counts up in all, the draws differ
    np.testing.assert_array_equal(fields["i"], [[3, 4, 5, 6]] * CHAINS)
    assert not np.allclose(fields["z.x"][0], fields["z.x"][1])
    data = az.from_numpyro(mcmc)
    for group in (data.posterior, data.sample_stats):
        assert group.sizes["chain"] == CHAINS
        assert group.sizes["draw"] == DRAWS


UNKNOWN = {
    "field": ("energy", "'accept_prob'.*got 'energy'"),
    "nested": ("adapt_state.mass", "'(step_size|likelihood_variance)'.*got 'mass'"),
}


@pytest.mark.parametrize(("name", "message"), UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_an_unknown_field_is_refused_with_the_known_ones(case, name, message):
    mcmc = make_mcmc(case[0](), num_warmup=2, num_samples=1)  # a start known above
    with pytest.raises(AttributeError, match=rf"`extra_fields` must be.*{message}"):
        mcmc.run(jr.key(0), DATA, extra_fields=(name,))


@pytest.mark.parametrize(
    "cls",
    [ExchangeState, Tuned, RTKState, AdaptState, ParticleState, ParticleAdaptState],
)
def test_states_stay_plain_named_tuples(cls):
    state = cls(*map(float, range(len(cls._fields))))
    assert not hasattr(state, "energy")
    assert getattr(state, "energy", None) is None
    assert state[0] == 0.0
    assert state[-1] == state[len(state) - 1]
    assert state[:2] == (0.0, 1.0)
    for again in (
        pickle.loads(pickle.dumps(state)),
        copy.deepcopy(state),
        jax.tree.map(lambda leaf: leaf, state),
        jax.jit(lambda s: s)(state),
    ):
        assert type(again) is cls
        assert again == state
