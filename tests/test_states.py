"""A state meets its own configuration: what can be taken over is, the rest raises by name."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import laws
import optax_zoo as zoo
from helpers import assert_close
from optax_zoo import _triangles

PARAMS = {"w": jnp.ones((4, 6)), "b": jnp.ones(4)}
# A parameter added, lost, turned, renamed or of another length, and what the error says of it.
OTHERS = {
    "added": ({**PARAMS, "x": jnp.ones(4)}, "x has a gradient and is not in the state"),
    "lost": ({"w": PARAMS["w"]}, "b has no gradient"),
    "turned": ({**PARAMS, "w": PARAMS["w"].T}, r"w.*the state.*(\(4, 6\).*\(6, 4\)|\(1, 6\))"),
    "renamed": ({"v": PARAMS["w"], "b": PARAMS["b"]}, "w has no gradient"),
    "broadcast": ({**PARAMS, "w": jnp.ones((1, 6))}, r"at w the state has the shape \(4, 6\)"),
}
# No part of its state is like the parameters.
WITHOUT_MOMENTS = {"scale_by_layerwise_trust_ratio"}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", sorted(set(laws.TABLE) - WITHOUT_MOMENTS))
def test_a_state_of_other_parameters_is_refused(name, other):
    params, words = OTHERS[other]
    tx = laws.TABLE[name].tx
    state = jax.eval_shape(tx.init, PARAMS)
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(tx.update, params, state, params)
    assert "was made for other parameters" in str(error.value) or "slots" in str(error.value)
    assert "start with `init`" in str(error.value)


def shampoo(**arguments: Any) -> optax.GradientTransformation:
    return zoo.scale_by_shampoo(**arguments)


def soap(**arguments: Any) -> optax.GradientTransformation:
    return zoo.scale_by_soap(**arguments)


def amos(slots: Any) -> optax.GradientTransformation:
    return zoo.scale_by_amos(1e-2, lambda name, shape: 1.0, slots)


def by_row(name: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *[1] * (len(shape) - 1))


SMALL, LARGE = zoo.Blocks(size=2), zoo.Blocks(size=4)
RATE = lambda count: 0.1  # noqa: E731
# The configuration that made the state, the one that meets it, and what the error names.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any], tuple[str, ...]]] = {
    "adabound to amsbound": (
        lambda: zoo.scale_by_dynamic_bounds(1e-3),
        lambda: zoo.scale_by_dynamic_bounds(1e-3, amsbound=True),
        ("amsbound=True needs a `nu_max`", "DynamicBoundsState has none"),
    ),
    "a constant decay to a schedule": (
        lambda: zoo.scale_by_layerwise_trust_ratio(weight_decay=0.1),
        lambda: zoo.scale_by_layerwise_trust_ratio(weight_decay=RATE),
        ("weight_decay=<function", "needs a `count`"),
    ),
    "a schedule to a constant decay": (
        lambda: zoo.scale_by_layerwise_trust_ratio(weight_decay=RATE),
        lambda: zoo.scale_by_layerwise_trust_ratio(weight_decay=0.1),
        ("weight_decay=0.1 has no `count`",),
    ),
    "positive to signed": (
        lambda: zoo.exponentiated_gradient(0.1),
        lambda: zoo.exponentiated_gradient(0.1, domain="signed"),
        ("domain='signed' needs a `beta`",),
    ),
    "signed to positive": (
        lambda: zoo.exponentiated_gradient(0.1, domain="signed"),
        lambda: zoo.exponentiated_gradient(0.1),
        ("domain='positive' has no `beta`",),
    ),
    "a constant rate of exponentiated gradients to a schedule": (
        lambda: zoo.exponentiated_gradient(0.1),
        lambda: zoo.exponentiated_gradient(RATE),
        ("learning_rate=<function", "needs a `count`"),
    ),
    "scope leaf to global": (
        lambda: zoo.egdd(0.1),
        lambda: zoo.egdd(0.1, scope="global"),
        ("scope='global' has one scale", "(2,)"),
    ),
    "scope global to leaf": (
        lambda: zoo.egdd(0.1, scope="global"),
        lambda: zoo.egdd(0.1),
        ("scope='leaf' has a scale for each leaf", "shape ()"),
    ),
    "slots full to reduced": (
        lambda: amos(None),
        lambda: amos(by_row),
        ("shape_fn", "(4, 1)", "for the parameter w", "(4, 6)"),
    ),
    "slots reduced to full": (
        lambda: amos(by_row),
        lambda: amos(None),
        ("shape_fn", "(4, 6)", "for the parameter w", "(4, 1)"),
    ),
    "momentum to nesterov": (
        lambda: zoo.accumulate_in_momentum(2),
        lambda: zoo.accumulate_in_momentum(2, nesterov=True),
        ("nesterov=True needs a `mean`",),
    ),
    "nesterov to momentum": (
        lambda: zoo.accumulate_in_momentum(2, nesterov=True),
        lambda: zoo.accumulate_in_momentum(2),
        ("nesterov=False has no `mean`",),
    ),
    "nothing then to something": (
        lambda: zoo.accumulate_in_momentum(2),
        lambda: zoo.accumulate_in_momentum(2, then=optax.trace(0.9)),
        ("the transformation in then asks for the state TraceState", "got tuple"),
    ),
    "something then to nothing": (
        lambda: zoo.accumulate_in_adam(2, then=optax.trace(0.9)),
        lambda: zoo.accumulate_in_adam(2),
        ("then=None asks for the state tuple", "got TraceState"),
    ),
    "another transformation": (
        lambda: zoo.scale_by_adax(),
        lambda: zoo.scale_by_sign_momentum(),
        ("state must be a SignMomentumState, got AdaxState",),
    ),
    "Shampoo to SOAP": (lambda: shampoo(), lambda: soap(), ("must be a SoapState",)),
    "other blocks": (
        lambda: shampoo(blocks=LARGE),
        lambda: shampoo(blocks=SMALL),
        ("blocks=Blocks(size=2", "(6, 2, 2)", "(2, 1, 3)"),
    ),
    "other blocks of SOAP": (
        lambda: soap(blocks=LARGE),
        lambda: soap(blocks=SMALL),
        ("blocks=Blocks(size=2", "(6, 2, 2)"),
    ),
    "other layers": (
        lambda: shampoo(),
        lambda: shampoo(layer_axes=1),
        ("layer_axes", "ShampooState was made with"),
    ),
    "another exponent": (
        lambda: shampoo(exponent=2),
        lambda: shampoo(),
        ("exponent is [4]", "made with [2]"),
    ),
    "a sum to an average": (
        lambda: shampoo(b2=1, graft_to=None),
        lambda: shampoo(b2=0.9, graft_to=None),
        ("b2 == 1 is False", "made with True"),
    ),
    "no graft to Adam": (
        lambda: shampoo(graft_to=None),
        lambda: shampoo(graft_to="adam"),
        ('graft_to="adam"', "ShampooState.graft"),
    ),
    "another graft to Adam": (
        lambda: shampoo(graft_to=optax.identity()),
        lambda: shampoo(graft_to="adam"),
        ('graft_to="adam"', "ShampooState.graft"),
    ),
    "Adam to another graft": (
        lambda: shampoo(graft_to="adam"),
        lambda: shampoo(graft_to=optax.scale_by_rss()),
        ("the transformation in graft_to asks for the state ScaleByRssState", "got dict"),
    ),
    "without momentum to with it": (
        lambda: shampoo(b1=0),
        lambda: shampoo(b1=0.9),
        ("b1=0.9 needs a `mu`", "ShampooState has none"),
    ),
    "SOAP without momentum to with it": (
        lambda: soap(b1=0),
        lambda: soap(b1=0.9),
        ("b1=0.9 needs a `mu`", "SoapState has none"),
    ),
}


@pytest.mark.parametrize(("before", "after", "pieces"), CHANGES.values(), ids=CHANGES.keys())
def test_a_state_of_another_configuration_is_refused(before, after, pieces):
    state = jax.eval_shape(before().init, PARAMS)
    with pytest.raises(ValueError, match=r"init") as error:
        jax.eval_shape(after().update, PARAMS, state, PARAMS)
    missing = [piece for piece in pieces if piece not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


def test_soap_sees_a_turned_parameter_that_makes_the_same_blocks():
    tx = soap(blocks=zoo.Blocks(size=4, merge_below=1))
    state = tx.init(jnp.ones((8, 4)))
    with pytest.raises(ValueError, match=r"at \(\) the state has the shape \(8, 4\), .*\(4, 8\)"):
        tx.update(jnp.ones((4, 8)), state)


def test_what_an_optimizer_no_longer_needs_is_left_behind():
    """As if it had never been: not kept, to be used when it is out of date."""
    changes = [
        (shampoo(b1=0.9), shampoo(b1=0)),
        (soap(b1=0.9), soap(b1=0)),
        (zoo.scale_by_dynamic_bounds(1e-3, amsbound=True), zoo.scale_by_dynamic_bounds(1e-3)),
        (shampoo(graft_to="adam"), shampoo(graft_to=None)),
    ]
    for before, after in changes:
        state = jax.eval_shape(before.init, PARAMS)
        _, state = jax.eval_shape(after.update, PARAMS, state)
        assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(after.init, PARAMS))


# --- roots of another kind ---------------------------------------------------------------------

DRIFT = zoo.Refresh(every=4, delay=2, start=1, drift_every=2)
PLAIN = zoo.Refresh(every=4, delay=2, start=1)
SCALES = jnp.diag(jnp.array([10.0, 1.0, 0.3, 0.1]))
# Two factors and three: an odd one is packed alone.
START = {"matrix": jnp.ones((4, 4)), "tensor": jnp.ones((3, 3, 3))}
UNMERGED = zoo.Blocks(merge_below=1)


def quadratic(x: Any) -> jax.Array:
    cube = jnp.einsum("ijk,ia->ajk", x["tensor"], SCALES[:3, :3])
    return jnp.sum((SCALES @ x["matrix"] @ SCALES) ** 2) / 2 + jnp.sum(cube**2) / 2


def stepper(**arguments: Any) -> Any:
    """A step of gradient descent with Shampoo's direction, whatever state comes."""
    tx = optax.chain(shampoo(blocks=UNMERGED, **arguments), optax.scale(-0.03))

    @jax.jit
    def step(x, state):
        moves, state = tx.update(jax.grad(quadratic)(x), state)
        return optax.apply_updates(x, moves), state

    return tx, step


def after(step: Any, x: Any, state: Any, steps: int) -> tuple[Any, Any]:
    for _ in range(steps):
        x, state = step(x, state)
    return x, state


def in_use(factors: Any) -> np.ndarray:
    return unpacked(factors, factors.roots if factors.corrected is None else factors.corrected)


def unpacked(factors: Any, packed: Any) -> np.ndarray:
    matrices = _triangles.unpack_pairs(packed, factors.age.size)
    return np.asarray(matrices.astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_roots_are_taken_over_without_drift_correction(dtype):
    """The adopted ones at once; the state keeps its structure, as wrappers may insist on it."""
    roots = zoo.Roots(dtype=dtype)
    tx, drifting = stepper(refresh=DRIFT, roots=roots)
    _, plain = stepper(refresh=PLAIN, roots=roots)
    x, state = after(drifting, START, tx.init(START), 8)
    # As if no root had been corrected since the last one was adopted: that of the fourth step.
    _, adopted = after(drifting, START, tx.init(START), 6)
    y, now = plain(x, state)
    assert jax.tree.structure(now) == jax.tree.structure(state)
    for was, found in zip(adopted[0].factors, now[0].factors, strict=True):
        np.testing.assert_array_equal(was.roots, found.roots)
        halves = unpacked(was, was.roots)
        tolerance: Any = {"rtol": 1e-5 if dtype is None else 1e-2, "atol": 1e-6}
        np.testing.assert_allclose(in_use(found), halves @ halves, **tolerance)
    y, later = after(plain, y, now, 199)
    assert zoo.inspect(later, START)["matrix"]["age"] < 6
    assert quadratic(y) < 3 * quadratic(after(drifting, x, state, 200)[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_roots_are_taken_over_with_drift_correction(dtype):
    tx, plain = stepper(refresh=PLAIN)
    _, drifting = stepper(refresh=DRIFT, roots=zoo.Roots(dtype=dtype))
    x, state = after(plain, START, tx.init(START), 8)
    y, now = drifting(x, state)
    for was, found in zip(state[0].factors, now[0].factors, strict=True):
        assert found.roots.dtype == found.corrected.dtype == (dtype or jnp.float32)
        # Neither a root nor a correction is due in step 9.
        tolerance: Any = {"rtol": 1e-6 if dtype is None else 1e-2}
        np.testing.assert_allclose(in_use(found), in_use(was), **tolerance)
        halves = unpacked(found, found.roots)
        tolerance: Any = {"rtol": 1e-4 if dtype is None else 2e-2, "atol": 1e-4 * in_use(was).max()}
        np.testing.assert_allclose(halves @ halves, in_use(was), **tolerance)
    y, later = after(drifting, y, now, 199)
    assert zoo.inspect(later, START)["matrix"]["drift"] > 0
    assert quadratic(y) < 3 * quadratic(after(plain, x, state, 200)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(DRIFT, PLAIN), (PLAIN, DRIFT)])
def test_roots_that_are_not_there_yet_are_taken_over(before, now):
    tx, _ = stepper(refresh=before)
    _, step = stepper(refresh=now)
    x, state = after(step, START, tx.init(START), 6)
    assert np.isfinite(quadratic(x))
    assert zoo.inspect(state, START)["matrix"]["age"] >= 0


@pytest.mark.slow
def test_drift_correction_is_switched_off_where_the_structure_is_fixed():
    """`nnx.Optimizer` never drops an array, `MultiSteps` and `scan` want the same again."""
    tx, drifting = stepper(refresh=DRIFT)
    off, plain = stepper(refresh=PLAIN)
    x, state = after(drifting, START, tx.init(START), 8)
    wanted, _ = after(plain, x, state, 10)

    def scanned(carry, _):
        return plain(*carry), None

    (found, _), _ = jax.lax.scan(scanned, (x, state), length=10)
    assert_close(found, wanted)

    class Model(nnx.Module):
        def __init__(self):
            self.matrix, self.tensor = nnx.Param(x["matrix"]), nnx.Param(x["tensor"])

    model = Model()
    before, optimizer = (
        nnx.Optimizer(model, tx, wrt=nnx.Param),
        nnx.Optimizer(model, off, wrt=nnx.Param),
    )
    for wrapped, leaf in zip(
        jax.tree.leaves(before.opt_state, is_leaf=is_variable), jax.tree.leaves(state), strict=True
    ):
        wrapped[...] = leaf
    optimizer.opt_state = before.opt_state

    def loss(model):
        return quadratic({"matrix": model.matrix[...], "tensor": model.tensor[...]})

    for _ in range(10):
        optimizer.update(model, nnx.grad(loss)(model))
    assert_close({"matrix": model.matrix[...], "tensor": model.tensor[...]}, wanted)


def is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def test_bases_are_taken_over_in_another_dtype():
    narrow = soap(roots=zoo.Roots(method="eigh", dtype=jnp.bfloat16))
    _, state = jax.eval_shape(narrow.update, PARAMS, jax.eval_shape(soap().init, PARAMS))
    assert state.bases[0].bases.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, narrow.init(PARAMS))


# --- meshes -----------------------------------------------------------------------------------

SQUARES = {name: jnp.diag(jnp.arange(1.0, 7)) for name in "abcd"}


@pytest.mark.parametrize("make", [shampoo, soap])
@pytest.mark.parametrize(("before", "after"), [(2, None), (None, 2), (2, 4)])
def test_a_state_of_another_mesh_is_sent_to_reshard(make, before, after):
    """Four (6, 6) divide evenly, so that shapes alone say nothing."""
    roots = zoo.Roots(method="eigh", on="device")
    was, now = (make(mesh=mesh_of(count), roots=roots) for count in (before, after))
    state = jax.eval_shape(was.init, SQUARES)
    with pytest.raises(ValueError, match=r"mesh .*zoo.reshard\(state, tx.init\(params\)\)"):
        jax.eval_shape(now.update, SQUARES, state)


def mesh_of(count: int | None) -> Any:
    if count is None:
        return None
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))


# --- what a state says of its parameters ------------------------------------------------------


def test_names_and_shapes_travel_without_arrays():
    state: Any = shampoo().init({"a": {"b": jnp.ones((2, 3))}, "c": jnp.ones(4)})
    (key,) = state.parameters
    assert json.loads(key)[0] == [["a/b", [2, 3]], ["c", [4]]]
    assert not jax.tree.leaves(state.parameters)
