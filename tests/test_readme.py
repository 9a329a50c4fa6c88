"""Code of the README and of the site's pages runs; their tables say what is so."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import optax_zoo as zoo
from benchmarks.arena._contenders import CONTENDERS, Setting
from benchmarks.arena._workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
SITE = ROOT / "examples" / "site"
REPORT = ROOT / "benchmarks" / "arena" / "REPORT.md"
README = (ROOT / "README.md").read_text(encoding="utf-8")
# name | when | state
TABLE = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \|$", README, re.MULTILINE)


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(path: Path, names: dict) -> None:
    """A page's blocks, one after the other."""
    for block in blocks(path):
        exec(compile(block, path.name, "exec"), names)


def test_every_python_block_runs():
    assert len(blocks(ROOT / "README.md")) >= 4
    names = {}
    run(ROOT / "README.md", names)
    assert names["tx"].init(names["params"])


GUIDES = sorted(path for path in SITE.glob("*.md") if path.name != "index.md" and blocks(path))


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_python_block_of_a_page_runs(page):
    """Pages go on from the code of the site's first page, as that says."""
    names: dict = {}
    run(SITE / "index.md", names)
    run(page, names)
    assert names["tx"].init(names["params"])


def test_the_pages_with_code_are_found():
    assert {"amos", "compose", "large_batches", "shampoo", "step_sizes"} <= {p.stem for p in GUIDES}


@pytest.mark.parametrize(("name", "bytes_per_parameter"), TABLE)
def test_the_table_gives_the_true_state_size(name, bytes_per_parameter):
    params = jnp.zeros((1024, 512))
    usual: dict = {"learning_rate": 1e-3, "every_k": 4, "eta_fn": lambda name, shape: 1.0}
    factory = getattr(zoo, name)
    arguments = inspect.signature(factory).parameters.values()
    tx = factory(*(usual[x.name] for x in arguments if x.default is x.empty))
    state = jax.eval_shape(tx.init, params)
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert round(total / params.size, 1) == float(bytes_per_parameter)


def test_no_optimizer_is_missing():
    optimizers = {
        name
        for name in filter(str.islower, zoo.__all__)
        if next(iter(inspect.signature(getattr(zoo, name)).parameters))
        in ("learning_rate", "every_k")
        and not name.startswith("scale_")
    }
    missing = optimizers - {name for name, _ in TABLE}
    assert not missing, f"give {missing} a row in README.md, 'Which optimizer when'"
    assert optimizers == {name for name, _ in TABLE}


# What the README calls a contender of the arena.
GAINS = {
    "AdamW (Optax)": "adamw b2=0.95",
    "Muon (Optax)": "muon",
    "Shampoo, roots renewed every 50 steps, used 15 steps late": "shampoo N=50 D=15",
    "Shampoo, the same with drift correction and attention heads merged": (
        "shampoo N=50 D=15, corrected, heads merged"
    ),
    "Shampoo, roots renewed every 10 steps, used at once, heads merged": "shampoo, heads merged",
    "SOAP, bases renewed every 10 steps, used at once": "soap",
}


@pytest.mark.parametrize("label", GAINS)
def test_the_table_of_gains_is_the_reports(label):
    name = GAINS[label]
    part = REPORT.read_text(encoding="utf-8").partition("## language model over bytes")[2]
    row = next(line for line in part.splitlines() if line.startswith(f"| `{name}` |"))
    *_, share, _, seconds = (cell.strip() for cell in row.strip("|").split("|"))
    params = jax.eval_shape(lambda: WORKLOADS["language_model"].init(None, 0))
    tx = CONTENDERS[name].make(Setting(lambda count: 1e-3, 1e-3, 0.95, 0.1))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = round(zoo.state_bytes(tx, params) / size)
    assert f"| {label} | {share} | {seconds} | {state} |\n" in README
    assert f"({round(size, -3):,} parameters)" in README


def test_the_readme_is_read_in_two_minutes():
    lines = README.splitlines()
    assert len(lines) <= 200
    long = [x for x in lines if len(x) > 110 and not x.startswith(("| ", "python3 -m venv "))]
    assert not long


PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md")),
    *SITE.glob("*.md"),
    REPORT,
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_readers_are_sent_to_what_exists(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search("^(<{7}|>{7}) ", text, re.MULTILINE), "an unfinished merge"
    found = set(re.findall(r"\b((?:benchmarks|examples|optax_zoo|tests)/[\w./-]*\w)", text))
    modules = re.findall(r"python -m (benchmarks[\w.]*\w)", text)
    found |= {module.replace(".", "/") for module in modules}
    found -= {"optax_zoo/_name.py", "tests/test_name.py", "tests/golden/name.npz"}  # to be made
    missing = [path for path in found if not any(map(Path.exists, _places(path)))]
    assert not missing


def _places(path: str) -> list[Path]:
    return [ROOT / path, ROOT / f"{path}.py"]
