"""The README's example gives the numbers that the README prints."""

import contextlib
import io
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# A chain's last digits change with the versions of JAX; its mean does not.
TOLERANCE = 0.08


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_first_example_prints_what_the_readme_says():
    code, expected = blocks("python")[0], blocks("text")[0]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = out.getvalue()
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
    got = [float(n) for n in NUMBER.findall(printed)]
    stated = [float(n) for n in NUMBER.findall(expected)]
    for value, reference in zip(got, stated, strict=True):
        assert abs(value - reference) <= TOLERANCE, f"{printed!r} against {expected!r}"


def test_the_two_commands_are_there():
    commands = blocks("bash")
    assert any("python examples/quickstart.py" in c for c in commands)
    assert any(c.rstrip().endswith("pytest -n 2") for c in commands)


def test_links_to_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
