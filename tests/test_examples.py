"""Every example runs, as its reader would run it, with small numbers."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = {
    "quickstart.py": [
        "--num-warmup=10",
        "--num-samples=8",
        "--num-levels=6",
        "--train-steps=20",
    ],
    "yesterdays_posterior.py": [
        "--nuts-samples=200",
        "--num-samples=20",
        "--train-steps=20",
    ],
}


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *SMALL[name], *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed():
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == set(SMALL)


def test_quickstart(tmp_path):
    picture = tmp_path / "picture.png"
    said = run("quickstart.py", f"--output={picture}")
    # eight draws of a poor run: it must say so and not look like a result
    assert "NOT mixed" in said
    assert "exact" in said
    assert "Pareto k" in said
    assert "acceptance" in said
    assert picture.stat().st_size > 10_000


def test_yesterdays_posterior():
    said = run("yesterdays_posterior.py")
    assert said.count("spread") == 3
    assert "log evidence" in said
