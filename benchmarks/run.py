"""All comparisons in one command, each in a process of its own.

    python benchmarks/run.py           # reduced: minutes, to see that everything runs
    python benchmarks/run.py --full    # what docs/measured.md quotes: hours
    python benchmarks/run.py --only drawing contest

Tables (Markdown and CSV, with command, versions and machine) and figures come to
``benchmarks/output``. A part that fails does not stop the others; the exit status is
then 1.
"""

import argparse
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
PARTS = {
    "paper": ["paper.py"],
    "drawing": ["drawing.py"],
    "drawing-learned": ["drawing.py", "--scores", "learned"],
    "images": ["images.py"],
    "contest": ["contest.py"],
    "densities": ["densities.py"],
    "digits": ["digits.py"],
}
# what makes a part's reduced form small enough, besides --quick
REDUCED = {
    "densities": ["--targets", "mixture, 2 d", "two moons", "wine, split 0"],
    "digits": ["--only", "coupling spline flow, logit", "EnergyMLP, logit"],
}


def run_part(name: str, full: bool) -> tuple[bool, float]:
    """Whether it passed, and its seconds."""
    script, *options = PARTS[name]
    if not full:
        options = [*options, "--quick", *REDUCED.get(name, [])]
    print(f"\n=== {name}: python benchmarks/{script} {' '.join(options)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, HERE / script, *options], check=False)
    return done.returncode == 0, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="hours instead of minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    results = {name: run_part(name, args.full) for name in args.only}
    print("\nTables and figures in benchmarks/output:")
    for name, (passed, seconds) in results.items():
        print(f"{seconds:7.0f} s  {name:16} {'passed' if passed else 'FAILED'}")
    return 0 if all(passed for passed, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
