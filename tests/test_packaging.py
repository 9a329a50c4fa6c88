"""What the package says of itself in several places is the same everywhere."""

import re
import tomllib
from pathlib import Path

import optax_zoo as zoo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOWER_EDGE = (ROOT / ".ci" / "lower-edge.txt").read_text(encoding="utf-8").splitlines()


def test_the_citation_is_of_this_package():
    # By patterns: a reader of YAML would be one more dependency.
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(\w[\w-]*): (.+)$", citation, re.MULTILINE))
    assert values["version"] == zoo.__version__
    assert values["license"] == PROJECT["license"]
    authors, keywords = citation.split("\nauthors:\n")[1].split("\nkeywords:\n")
    assert re.findall(r'- name: "(.+)"', authors) == [one["name"] for one in PROJECT["authors"]]
    assert re.findall(r"- (\w+)", keywords) == PROJECT["keywords"]


def test_dependencies_are_bounded_below_alone_and_the_bound_is_tried():
    edge = dict(line.split("==") for line in LOWER_EDGE if not line.startswith("#"))
    for dependency in PROJECT["dependencies"]:
        bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", dependency)
        assert bound, dependency
        assert f"{edge[bound[1]]}.".startswith(f"{bound[2]}.")


def test_the_pythons_that_are_tried_are_those_that_are_promised():
    prefix = "Programming Language :: Python :: 3."
    promised = [int(c.removeprefix(prefix)) for c in PROJECT["classifiers"] if prefix in c]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tried = [int(minor) for minor in re.findall(r'"3\.(\d+)"', workflow)]
    assert tried == [min(promised), max(promised)]
    assert PROJECT["requires-python"] == f">=3.{min(promised)}"
