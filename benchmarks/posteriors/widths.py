"""Two modes of different widths: found, said to be missing, or missed in silence?

    python -m benchmarks.posteriors.widths          # islands, and d = 2, 5, 10
    python -m benchmarks.posteriors.widths --dims 2 --keys 2
    python -m benchmarks.posteriors.widths --quick  # does it run

A prior N(0, 25 I) and two separated Gaussians of equal weight, the second narrower by a
factor of 2, 5, 10 or 20; and the islands .3 N(-3, .25 I) + .7 N(3, .09 I) in five
dimensions. Defaults, 4 chains, 300 draws of warm-up and 500 kept. *Found*: the pooled
weight is within .1 (islands: .05) and the evidence within 3 of its standard errors or
.1. *Warned*: a problem is reported, or the narrow mode lies below the width that
``rtk.diagnose`` says is not excluded. *Silent*: neither.
"""

import argparse
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_rtk as rtk
from benchmarks.shared.runs import vectorised
from benchmarks.shared.tables import Table, with_error
from numpyro_rtk.core.warmup.population import narrowest_found

PRIOR_SD, PLACE = 5.0, 3.0
VERDICTS = ("found", "warned", "silent")
COLUMNS = ("target", "key", "verdict", "weight", "by chain", "log evidence")


def pair(dim: int, weight: float, widths: tuple[float, float]):
    """A model with that posterior, and evidence 1."""

    def log_normal(x, mean, sd):
        return jnp.sum(dist.Normal(mean, sd).log_prob(x), -1)

    def model():
        prior = dist.Normal(0.0, PRIOR_SD).expand([dim]).to_event(1)
        x = numpyro.sample("x", prior)
        left = jnp.log(1.0 - weight) + log_normal(x, -PLACE, widths[0])
        right = jnp.log(weight) + log_normal(x, PLACE, widths[1])
        numpyro.factor("modes", jnp.logaddexp(left, right) - prior.log_prob(x))

    return model


def run(model, key: int):
    """The finished run."""
    mcmc = vectorised(rtk.RTKReplicaExchange(model), 300, 500, 4)
    mcmc.run(jax.random.key(key))
    return mcmc


def verdict(mcmc, weight: float, tolerance: float, ratio: float) -> tuple[str, ...]:
    """Found, warned or silent; the weight and by chain, the log evidence."""
    right = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])[..., 0] > 0
    report = rtk.diagnose(mcmc)
    value, error = report.log_evidence
    by_chain = ", ".join(f"{share:.2f}" for share in right.mean(axis=1))
    numbers = f"{right.mean():.3f}", by_chain, with_error(value, error)
    is_right = abs(right.mean() - weight) < tolerance
    if is_right and abs(value) < max(3.0 * error, 0.1):
        return "found", *numbers
    informed = float(mcmc.last_state.shared.found.num_informed)
    width = narrowest_found(mcmc.sampler.num_particles, informed)
    if report.problems or (report.limits and ratio * width > 1.0):
        return "warned", *numbers
    return "silent", *numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", nargs="*", type=int, default=[2, 5, 10])
    parser.add_argument("--ratios", nargs="*", type=float, default=[2, 5, 10, 20])
    parser.add_argument("--keys", type=int, default=5)
    parser.add_argument("--islands", type=int, default=10, help="keys of the islands")
    args = parser.parse_args()
    if args.quick:
        args.dims, args.ratios, args.keys, args.islands = [2], [2.0], 1, 0
    targets = {}
    if args.islands:
        targets["islands"] = (5, 0.7, (0.5, 0.3), 0.05, 0.5 / 0.3, args.islands)
    for dim in args.dims:
        for ratio in args.ratios:
            name = f"d = {dim}, ratio {ratio:g}"
            targets[name] = (dim, 0.5, (1.0, 1.0 / ratio), 0.1, ratio, args.keys)
    table, counts = Table("widths", COLUMNS), {}
    for name, (dim, weight, widths, tolerance, ratio, keys) in targets.items():
        model, counts[name] = pair(dim, weight, widths), Counter()
        for key in range(keys):
            what, *numbers = verdict(run(model, key), weight, tolerance, ratio)
            counts[name][what] += 1
            table.add(name, key, what, *numbers)
    summary = Table("widths_counts", ("target", *VERDICTS))
    for name, count in counts.items():
        summary.add(name, *(count[what] for what in VERDICTS))


if __name__ == "__main__":
    main()
