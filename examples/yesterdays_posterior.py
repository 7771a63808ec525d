"""Yesterday's posterior is today's prior: two batches of data, one after the other.

Rates of failure in a plant: a hierarchical model with a positive spread. The first batch
is analysed with NUTS. Its posterior of the population's two parameters becomes the prior
for the second batch, in two lines; the result is compared with a fit of both batches at
once, which the two-step one approximates.

    python examples/yesterdays_posterior.py
"""

import argparse

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_rtk as rtk

TRUTH = {"mean": 1.2, "spread": 0.7}


def simulate(key: jax.Array, num_machines: int) -> jax.Array:
    """Measured log rates, five per machine."""
    key_machine, key_noise = jr.split(key)
    rates = TRUTH["mean"] + TRUTH["spread"] * jr.normal(key_machine, (num_machines, 1))
    return rates + 0.5 * jr.normal(key_noise, (num_machines, 5))


def machines(mean, spread, y):
    """The part of the model that every batch shares."""
    with numpyro.plate("machine", y.shape[0]):
        rate = numpyro.sample("rate", dist.Normal(mean, spread))
        numpyro.sample("y", dist.Normal(rate[:, None], 0.5).to_event(1), obs=y)


def vague(y):
    """Before any data."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    machines(mean, spread, y)


def summary(name: str, samples: dict) -> None:
    """Mean and standard deviation of the two parameters."""
    parts = [
        f"{site} {np.mean(samples[site]):.3f} +- {np.std(samples[site]):.3f}"
        for site in ("mean", "spread")
    ]
    print(f"{name:28s}{',  '.join(parts)}")


def nuts(key: jax.Array, y: jax.Array, num_samples: int = 4000) -> MCMC:
    """The vague model by NUTS."""
    mcmc = MCMC(
        NUTS(vague, target_accept_prob=0.9),
        num_warmup=num_samples // 4,
        num_samples=num_samples,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(key, y)
    return mcmc


def main() -> None:
    """Run both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuts-samples", type=int, default=4000)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--train-steps", type=int, default=4000)
    args = parser.parse_args()
    first, second = simulate(jr.key(0), 8), simulate(jr.key(1), 12)
    yesterday = nuts(jr.key(2), first, args.nuts_samples)
    summary("first batch (NUTS)", yesterday.get_samples())

    model_, _ = rtk.fit(
        jr.key(3), yesterday, sites=["mean", "spread"], num_steps=args.train_steps
    )
    prior = rtk.LearnedPrior(model_)

    def today(y):
        sites = rtk.learned_sites("population", prior)
        machines(sites["mean"], sites["spread"], y)

    mcmc = MCMC(
        rtk.RTKReplicaExchange(today),
        num_warmup=max(args.num_samples // 4, 20),
        num_samples=args.num_samples,
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(4), second)
    summary("then the second batch (RTK)", mcmc.get_samples())
    print(rtk.diagnose(mcmc))
    joint = nuts(jr.key(5), jnp.concatenate([first, second]), args.nuts_samples)
    summary("both at once (NUTS)", joint.get_samples())


if __name__ == "__main__":
    main()
