"""Every example runs, as its reader would run it, with small numbers."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = {
    "quickstart.py": [
        "--num-warmup=10",
        "--num-samples=8",
        "--num-levels=6",
        "--train-steps=20",
    ]
}


def test_every_example_is_listed():
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_example_runs(name, tmp_path):
    picture = tmp_path / "picture.png"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / name),
            *SMALL[name],
            f"--output={picture}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    # eight draws of a poor run: it must say so and not look like a result
    assert "NOT mixed" in done.stdout
    assert "exact" in done.stdout
    assert "Pareto k" in done.stdout
    assert "acceptance" in done.stdout
    assert picture.stat().st_size > 10_000
