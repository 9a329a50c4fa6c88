"""Notebooks are committed bare and install from their clone; every public name is documented."""

import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import optax_zoo as zoo

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SITE = EXAMPLES / "site"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#[\w-]*)?\)")


def cells(path: Path) -> list[Mapping[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@notebooks
def test_a_notebook_is_committed_without_outputs(path):
    for cell in cells(path):
        assert not cell.get("outputs"), cell["source"]
        assert cell.get("execution_count") is None


@notebooks
def test_a_notebook_installs_the_package_from_its_clone(path):
    title, install, *rest = cells(path)
    assert title["source"][0].startswith("# ")
    assert "skip-execution" in install["metadata"]["tags"]  # the site is built from this checkout
    (line,) = install["source"]
    command, subcommand, quiet, requirement = shlex.split(line)
    assert (command, subcommand, quiet) == ("%pip", "install", "-q")
    folder, extra = re.fullmatch(r"(.+)\[(\w+)\]", requirement).groups()  # type: ignore
    assert (path.parent / folder).resolve() == ROOT  # kernels start in the notebook's folder
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {"jax", "optax_zoo", *map(_package, project["dependencies"] + extras[extra])}
    code = "".join("".join(c["source"]) + "\n" for c in rest if c["cell_type"] == "code")
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) <= wanted | STANDARD
    assert "pip install" not in code


STANDARD = {"functools", "textwrap", "threading", "time"}


def _package(requirement: str) -> str:
    return re.split(r"\W", requirement)[0]


def test_no_address_is_promised_before_there_is_one():
    kinds = {".py", ".md", ".rst", ".ipynb", ".toml", ".yml", ".cff"}
    skipped = {".git", ".venv", "build", "dist", "runs"}
    for path in ROOT.rglob("*"):
        inner = path.relative_to(ROOT).parts
        if path.suffix in kinds and skipped.isdisjoint(inner) and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            for promise in ("_owner_", "colab.research", "colab-badge"):
                assert promise not in text, path


PAGES = [*sorted(SITE.glob("*.md")), *NOTEBOOKS, ROOT / "README.md", ROOT / "CHANGELOG.md"]
PAGES += [ROOT / "benchmarks" / "arena" / "REPORT.md", ROOT / ".github" / "CONTRIBUTING.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_and_pictures_lead_somewhere_in_a_checkout(path):
    text = path.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    assert not missing


def test_every_page_of_the_site_is_in_its_table_of_contents():
    home = (SITE / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:api/|notebooks/)?\w+$", home, re.MULTILINE)
    pages = {path.stem for path in SITE.glob("*.md")} - {"index"}
    pages |= {f"api/{path.stem}" for path in (SITE / "api").glob("*.rst")}
    pages |= {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    assert sorted(listed) == sorted(pages)


def test_no_public_name_is_missing():
    pages = [path.read_text(encoding="utf-8") for path in (SITE / "api").glob("*.rst")]
    found = re.findall(r"^\.\. auto(function|class):: (\w+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(name for _, name in found) == zoo.__all__
    for kind, name in found:
        assert (kind == "class") == inspect.isclass(getattr(zoo, name))
