"""Notebooks are committed bare and open in Colab; the site documents every public name once."""

import inspect
import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import optax_zoo as zoo

EXAMPLES = Path(__file__).parents[1] / "examples"
REPOSITORY = runpy.run_path(str(EXAMPLES / "site" / "conf.py"))["repository"]
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[Mapping[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@notebooks
def test_a_notebook_is_committed_without_outputs(path):
    for cell in cells(path):
        assert not cell.get("outputs"), cell["source"]
        assert cell.get("execution_count") is None


@notebooks
def test_a_notebook_starts_with_its_badge_and_one_pip_line(path):
    badge, install, *rest = cells(path)
    colab = "https://colab.research.google.com"
    image = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
    link = f"({colab}/github/{REPOSITORY}/blob/main/examples/notebooks/{path.name})"
    assert badge["source"][0].strip() == image + link
    (line,) = install["source"]
    assert line.startswith(f'%pip install -q "git+https://github.com/{REPOSITORY}" ')
    assert "skip-execution" in install["metadata"]["tags"]  # the site is built from this checkout
    assert not any("pip install" in line for cell in rest for line in cell["source"])


@notebooks
def test_every_link_of_a_notebook_to_the_package_is_to_the_repository(path):
    for cell in cells(path):
        linked = re.findall(r"(?:/github/|github\.com/)([^/]+/optax.zoo)", "".join(cell["source"]))
        assert set(linked) <= {REPOSITORY}


def test_no_public_name_is_missing():
    pages = [path.read_text(encoding="utf-8") for path in (EXAMPLES / "site" / "api").glob("*.rst")]
    found = re.findall(r"^\.\. auto(function|class):: (\w+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(name for _, name in found) == zoo.__all__
    for kind, name in found:
        assert (kind == "class") == inspect.isclass(getattr(zoo, name))
