"""Unconditional draws with exact scores: accuracy against network evaluations.

    python benchmarks/drawing.py             # 10,000 draws per row
    python benchmarks/drawing.py --quick

Every number has the floor of an i.i.d. sample of the same size beside it: sliced W2 is
divided by it, marginal accuracy is what is lost against it.
"""

import argparse
import time

import jax
import jax.random as jr
import numpy as np
import numpyro
from metrics import Reference
from numpyro.infer import MCMC
from targets import drawing_targets

import numpyro_rtk as rtk

ROWS = {
    "RTKMALA default, 40": lambda d: rtk.RTKMALA(score=d),
    "RTKMALA, 20": lambda d: rtk.RTKMALA(score=d, num_segments=13, num_steps=(2, 1)),
    "RTKMALA, 10": lambda d: rtk.RTKMALA(score=d, num_segments=7, num_steps=(1,)),
    "RTKMALA weighted, 40": lambda d: rtk.RTKMALA(
        score=d, predictor="gaussian", num_segments=33, num_steps=(2, 1)
    ),
    "RTKULD default, 40": lambda d: rtk.RTKULD(score=d),
    "RTKULD, 20": lambda d: rtk.RTKULD(score=d, num_segments=13, num_steps=(4, 2)),
    "RTKULD, 10": lambda d: rtk.RTKULD(score=d, num_segments=7, num_steps=(2,)),
    "RTKMALA paper setting": lambda d: rtk.RTKMALA(score=d, setting="paper"),
    "RTKULD paper setting": lambda d: rtk.RTKULD(score=d, setting="paper"),
}


def draw(kernel, n: int):
    mcmc = MCMC(
        kernel,
        num_warmup=100,
        num_samples=n // 100,
        num_chains=100,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.time()
    mcmc.run(jr.key(0))
    samples = np.asarray(mcmc.get_samples())
    evals = int(mcmc.get_extra_fields()["num_score_evals"][0])
    return samples, evals, time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 draws")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    args = parser.parse_args()
    n = 2000 if args.quick else 10_000
    print(
        f"jax {jax.__version__}, numpyro {numpyro.__version__}, {n} draws, fixed seeds"
    )
    columns = ("target", "kernel", "evals", "W2 / floor", "marginal loss", "weight TV")
    print(f"| {' | '.join(columns)} | energy bias |\n|{'---|' * 7}")
    for target in drawing_targets():
        reference = Reference(target, n)
        for name in args.rows:
            samples, evals, _ = draw(ROWS[name](target.density), n)
            s = reference.score(samples)
            print(
                f"| {target.name} | {name} | {evals} | {s['sliced_w2_ratio']:.2f} | "
                f"{s['marginal_loss']:+.3f} | {s['weight_tv']:.3f} | "
                f"{s['energy_bias']:+.3f} |",
                flush=True,
            )
        floor = reference.floor
        print(
            f"| {target.name} | i.i.d. floor | - | W2 {floor['sliced_w2']:.4f} | accuracy "
            f"{floor['marginal_accuracy']:.3f} | {floor['weight_tv']:.3f} | - |"
        )


if __name__ == "__main__":
    main()
