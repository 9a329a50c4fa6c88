"""The registry says what signatures, states and the README say."""

import inspect
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_zoo as zoo
from benchmarks.arena._verdicts import standing
from benchmarks.arena.run import RESULTS
from helpers import assert_same, random_tree, some
from optax_zoo._catalogue import TABLE

NAMES = zoo.list_optimizers()
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NEEDED: dict[str, Any] = {"amos": {"eta_fn": lambda name, shape: 0.5}}
every = pytest.mark.parametrize("name", NAMES)


def create(name: str, **arguments: Any) -> optax.GradientTransformationExtraArgs:
    return zoo.create(name, 1e-2, **NEEDED.get(name, {}), **arguments)


def test_no_optimizer_is_missing():
    """Every public function whose first argument is the rate and whose result has an init."""
    found = {
        name
        for name in filter(str.islower, zoo.__all__)
        if next(iter(inspect.signature(getattr(zoo, name)).parameters)) == "learning_rate"
        and not name.startswith("scale_")
    }
    missing = found - set(NAMES)
    assert not missing, f"give {missing} an entry in TABLE of optax_zoo/_catalogue.py"
    assert found == set(NAMES)
    assert sorted(NAMES) == NAMES


@every
def test_arguments_and_defaults_are_the_signatures(name):
    entry = zoo.info(name)
    assert entry.factory is getattr(zoo, name)
    parameters = inspect.signature(entry.factory).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert dict(entry.defaults) == defaults
    required = [p.name for p in parameters if p.default is p.empty and p.name != "learning_rate"]
    assert list(entry.required) == required
    # 0 and 0.0, or 1 and True, are equal and not the same.
    for key, value in defaults.items():
        assert type(entry.defaults[key]) is type(value)


@every
def test_state_bytes_are_the_states(name):
    params = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    entry = zoo.info(name)
    tx = entry.factory(1e-3, **NEEDED.get(name, {}))
    assert round(zoo.state_bytes(tx, params) / params.size, 1) == entry.state_bytes


@pytest.mark.parametrize("name", some(NAMES, *(n for n in NAMES if n not in ("shampoo", "soap"))))
def test_what_update_needs(name):
    grads = {"w": jnp.ones((2, 2)) / 4}

    def step(**arguments):
        tx = create(name, **arguments)
        tx.update(grads, tx.init(grads))

    def refused():
        return pytest.raises(ValueError, match="params is None")

    match zoo.info(name).needs_params:
        case "always":
            with refused():
                step()
        case "with decay":
            step(weight_decay=0.0)
            with refused():
                step(weight_decay=0.1)
        case "never":
            step()
            assert "weight_decay" not in zoo.info(name).defaults


@every
def test_papers_are_the_docstrings_and_the_readmes(name):
    entry = zoo.info(name)
    text = " ".join((inspect.getdoc(entry.factory) or "").partition("References:")[2].split())
    row = re.findall(rf"^\| `{name}` \| (.*?) \|", README, re.MULTILINE)[0]
    # A subtitle may be left out in a list of references.
    assert entry.paper.split(":")[0] in text
    if entry.arxiv is not None:
        assert f"https://arxiv.org/abs/{entry.arxiv}" in text
        assert entry.arxiv in row or "authors' code" in row
    assert 10 <= len(entry.description) <= 90


@every
def test_recommended_ranges_are_ranges_with_a_source(name):
    entry = zoo.info(name)
    for found in (entry.learning_rate, entry.weight_decay):
        if found is not None:
            assert 0 < found.low <= found.high
            assert found.source
    if entry.weight_decay is not None:
        assert "weight_decay" in entry.defaults


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("lio*", ["lion"]),
        ("*bound*", ["adabound", "adaboundw", "amsbound"]),
        ("adabound?", ["adaboundw"]),
        ("[sp]hampoo", ["shampoo"]),
        ("adam", []),
        ("", []),
    ],
)
def test_patterns(pattern, names):
    assert zoo.list_optimizers(pattern) == names


def test_create_is_the_factory_with_these_arguments():
    params, grads = random_tree(0), random_tree(1)
    made = zoo.create("lion", 1e-3, weight_decay=0.3, b1=0.5)
    meant = zoo.lion(1e-3, weight_decay=0.3, b1=0.5)
    assert_same(*(tx.update(grads, tx.init(params), params) for tx in (made, meant)))
    with_rate = zoo.create("adax", lambda count: 0.5**count)
    assert_same(with_rate.init(params), zoo.adax(lambda count: 0.5**count).init(params))


def test_the_table_cannot_be_changed_by_accident():
    defaults: Any = zoo.info("lion").defaults
    with pytest.raises(TypeError):
        defaults["b1"] = 0.0


@pytest.mark.parametrize(
    ("call", "kind", "pieces"),
    [
        (lambda: zoo.info("lions"), ValueError, ("name is 'lions'", "did you mean lion?", "soap")),
        (lambda: zoo.create("adam", 0.1), ValueError, ("'adam'", "did you mean adax")),
        (lambda: zoo.info("zzz"), ValueError, ("'zzz'", "known are adabound, adaboundw")),
        (lambda: zoo.info(["lion"]), ValueError, ("['lion']", "known are")),  # type: ignore
        (
            lambda: zoo.create("lion", 0.1, b3=0.5),
            TypeError,
            ("lion takes no argument 'b3'", "b3=0.5", "it takes b1, b2, mu_dtype"),
        ),
        (
            lambda: zoo.create("lamb", 0.1, weight_decy=0.5),
            TypeError,
            ("'weight_decy'", "did you mean weight_decay"),
        ),
        (lambda: zoo.create("amos", 0.1), TypeError, ("amos also needs eta_fn", "got none")),
        (lambda: zoo.create("lion", 0.1, b1=2.0), ValueError, ("b1", "2.0", "< 1.0")),
        (lambda: zoo.list_optimizers(None), TypeError, ("pattern", "None")),  # type: ignore
    ],
)
def test_bad_names_and_arguments_are_explained(call, kind, pieces):
    with pytest.raises(kind) as error:
        call()
    assert not [piece for piece in pieces if piece not in str(error.value)], error.value


# --- bytes of state ---------------------------------------------------------------------------


def true_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1),
        optax.adam(0.1, mu_dtype=jnp.bfloat16),
        optax.add_noise(0.1, 0.9, key=0),
        zoo.lion(0.1),
        zoo.lars(lambda count: 0.1),
        zoo.shampoo(0.1, blocks=zoo.Blocks(size=2)),
        optax.inject_hyperparams(zoo.adabound)(learning_rate=0.1),
        optax.MultiSteps(zoo.lamb(0.1), 3).gradient_transformation(),
        optax.masked(zoo.lion(0.1), {"w": True, "b": False}),
    ],
    ids=["none", "mu", "keys", "lion", "schedule", "shampoo", "injected", "multi_steps", "masked"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_bytes_are_those_of_the_arrays(tx, dtype):
    params = random_tree(0, dtype)
    assert zoo.state_bytes(tx, params) == true_bytes(tx, params)
    assert zoo.state_bytes(tx, jax.eval_shape(lambda: params)) == true_bytes(tx, params)


def test_state_bytes_by_hand():
    params = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4, jnp.bfloat16), "none": None}
    assert zoo.state_bytes(optax.identity(), params) == 0
    assert zoo.state_bytes(zoo.lion(0.1), params) == 4 * (12 + 4)
    assert zoo.state_bytes(zoo.lion(0.1, mu_dtype=jnp.bfloat16), params) == 2 * (12 + 4)
    assert type(zoo.state_bytes(zoo.lion(0.1), params)) is int


def test_state_bytes_allocates_nothing():
    params = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)  # 4 TiB
    assert zoo.state_bytes(zoo.amsbound(), params) == 12 * 2**40 + 4 + 16


def test_state_bytes_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"tx must be a gradient transformation.*pass e\.g\."):
        zoo.state_bytes({"w": jnp.ones(2)}, zoo.lion(0.1))  # type: ignore


def test_the_tuned_rates_are_those_of_the_arenas_recorded_runs():
    recorded: dict[str, list[float]] = {name: [] for name in TABLE}
    for workload in ("autoencoder", "language_model"):
        place = standing(workload, RESULTS)
        assert place is not None
        for name, verdict in place.verdicts.items():
            if name in recorded:
                recorded[name].append(verdict.full.rate / place.target.rate)
    assert recorded["shampoo"]
    for name, entry in TABLE.items():
        if len(recorded[name]) < 2:
            assert entry.tuned is None
        else:
            found = min(recorded[name]), max(recorded[name])
            assert entry.tuned is not None, name
            assert (entry.tuned.low, entry.tuned.high) == pytest.approx(found, rel=0.03)
