"""RTKParticleGibbs on posteriors in closed form, with scores alone and with energies.

    python -m benchmarks.posteriors.scores
    python -m benchmarks.posteriors.scores --quick

Seven modes that a quarter of the directions, measured precisely, cannot tell apart
(``informative_posterior``), for several numbers of levels; and a standard normal, one
coordinate measured with sd .1, where ``RTKULD(model)`` as published stands beside.
Scores are exact. Errors: of the modes' shares in total variation, spreads as ratios by
coordinate, least and largest.
"""

import argparse

import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_rtk as rtk
from benchmarks.posteriors.problem import ScoreAlone
from benchmarks.shared.known_posteriors import informative_posterior
from benchmarks.shared.runs import make_model, sample, vectorised
from benchmarks.shared.tables import Table

# dimensions: particles, chains, draws, numbers of levels
SIZES = {
    5: (32, 64, 500, (16, 32, 64)),
    20: (64, 32, 500, (32, 64)),
    64: (64, 16, 1000, (32, 64)),
}
SD = 0.1


def modes(table: Table, dim: int, num_particles, num_chains, draws, num_levels) -> None:
    posterior = informative_posterior(dim)
    laws = {"score": ScoreAlone(posterior.prior), "energy": posterior.prior}
    for law, prior in laws.items():
        options = {"num_particles": num_particles, "num_levels": num_levels}
        model = make_model(posterior._replace(prior=prior))
        kernel = rtk.RTKParticleGibbs(model, **options)
        mcmc, x, seconds = sample(kernel, posterior, 10, draws, num_chains, seed=0)
        flat = x.reshape(-1, dim)
        ratio = flat.std(axis=0) / posterior.sd
        value, error = rtk.log_evidence(mcmc)
        evals = np.sum(np.asarray(mcmc.get_extra_fields()["num_score_evals"], float))
        table.add(
            f"7 modes, d = {dim}",
            law,
            f"{num_particles} x {num_levels}",
            posterior.error(flat),
            f"{ratio.min():.2f}-{ratio.max():.2f}",
            f"{value - posterior.log_evidence:.3f} +- {error:.3f}",
            rtk.diagnose(mcmc).law_gap,
            evals / 1e6,
            seconds,
        )


class Standard:
    """A standard normal in two dimensions, its score."""

    event_shape = (2,)

    def score(self, x, t):
        return -x


def precise(table: Table, draws: int) -> None:
    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(Standard()))
        numpyro.sample("y", dist.Normal(x[1], SD), obs=y)

    exact = SD / np.sqrt(1.0 + SD**2)
    for kernel in (rtk.RTKParticleGibbs(model), rtk.RTKULD(model)):
        mcmc = vectorised(kernel, 20, draws, 20)
        mcmc.run(jr.key(0), 0.0)
        x = np.asarray(mcmc.get_samples()["x"])
        sd = f"{x[:, 1].std() / exact:.3f}"
        table.add("a datum of sd .1", type(kernel).__name__, "", "", sd, "", "", "", "")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    columns = ("posterior", "law", "particles x levels", "TV", "sd ratio")
    columns += ("log evidence, off", "law gap, nats", "million evals", "s")
    table = Table("scores", columns)
    precise(table, 20 if quick else 500)
    for dim, (num_particles, num_chains, draws, levels) in SIZES.items():
        for num_levels in levels[:1] if quick else levels:
            size = (4, 5) if quick else (num_chains, draws)
            modes(table, dim, num_particles, *size, num_levels)
        if quick:
            break


if __name__ == "__main__":
    main()
