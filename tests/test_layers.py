"""The directions of imports, as contracts in pyproject.toml; and the public names."""

import ast
import pathlib
import shutil
import subprocess
import sys

import pytest

import numpyro_rtk

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numpyro_rtk"
HEAVY = {"arviz", "arviz_base", "arviz_stats", "matplotlib"}
SLOW = {"sklearn", "scipy.stats"}  # to import


def test_import_contracts():
    command = shutil.which(
        "lint-imports", path=str(pathlib.Path(sys.executable).parent)
    )
    if command is None:
        pytest.skip("import-linter is not installed (extra `dev`)")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_heavy_packages_are_imported_inside_functions(path):
    at_the_top = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            at_the_top |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            at_the_top.add(str(node.module).split(".")[0])
    assert not at_the_top & HEAVY


def test_import_loads_nothing_heavy():
    code = (
        "import sys, numpyro_rtk\n"
        f"heavy = {HEAVY | SLOW}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_public_names_have_docstrings():
    names = [n for n in vars(numpyro_rtk) if not n.startswith("_")]
    public = [n for n in names if callable(getattr(numpyro_rtk, n))]
    assert public
    assert [n for n in public if not getattr(numpyro_rtk, n).__doc__] == []


def test_every_public_name_is_in_the_docs():
    names = [n for n in vars(numpyro_rtk) if not n.startswith("_")]
    public = [n for n in names if callable(getattr(numpyro_rtk, n))]
    page = (ROOT / "docs" / "api.md").read_text()
    assert [n for n in public if f"numpyro_rtk.{n}\n" not in page] == []
