"""The README's code runs, its table says what states hold; contributors are sent to what exists."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import optax_zoo as zoo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `(\w+)` \| .*? \| (\d+) \|", README, re.MULTILINE)


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["tx"].init(names["params"])


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
    assert not missing, f"give {missing} a row in README.md, 'The optimizers'"
    assert optimizers == {name for name, _ in TABLE}


PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md")),
    *(ROOT / "examples" / "site").glob("*.md"),
    ROOT / "benchmarks" / "arena" / "REPORT.md",
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
