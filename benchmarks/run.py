"""All comparisons in one command, each in a process of its own.

    python -m benchmarks.run                 # reduced, to see that everything runs
    python -m benchmarks.run --full          # what docs/measured.md quotes: hours
    python -m benchmarks.run --only drawing  # the scripts of one question

Tables (Markdown and CSV, with command, versions and machine) and figures come to
``benchmarks/output``. A script that fails does not stop the others; the exit status is
then 1. Not among them: ``drawing.check_solvers``, which needs torch and diffusers.
"""

import argparse
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
QUESTIONS = {
    "drawing": ("contest", "contest --scores learned", "paper"),
    "posteriors": ("contest", "exchange", "widths", "small", "scores", "score_rivals"),
    "densities": ("contest", "learned_prior", "distilled"),
    "images": ("draws", "bits"),
    "cost": ("kernels", "training", "one_mode", "first_run"),
}


def run_script(question: str, script: str, full: bool) -> tuple[bool, float]:
    """Whether it passed, and its seconds; ``script`` with its options."""
    arguments = ["-m", *f"benchmarks.{question}.{script}".split()]
    if not full:
        arguments.append("--quick")
    print(f"\n=== python {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    return done.returncode == 0, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="hours instead of minutes")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    args = parser.parse_args()
    results = {
        f"{question}.{script}": run_script(question, script, args.full)
        for question in args.only
        for script in QUESTIONS[question]
    }
    print("\nTables and figures in benchmarks/output:")
    for name, (passed, seconds) in results.items():
        print(f"{seconds:7.0f} s  {name:32} {'passed' if passed else 'FAILED'}")
    return 0 if all(passed for passed, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
