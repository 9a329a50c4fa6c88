"""Random problems and hyper-parameters: the optimizers against the NumPy references, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_zoo as zoo
import references
from helpers import enable_x64, trajectory

SHAPES = {"w": (4, 3), "k": (3, 2, 2), "s": ()}
STEPS = 6
DROP = 3  # the step, counted from 0, where the schedules fall to a tenth

decays = st.just(0.0) | st.floats(0.01, 0.999)
rates = st.floats(1e-3, 1.0)
weight_decays = st.sampled_from([0.0, 1e-2, 0.3])
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=12)


def make_problem(seed):
    """Parameters, one of them zero, and gradients on several scales, some of them zero."""
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    params["k"][1] = 0
    grads = {
        name: 10.0 ** rng.integers(-3, 2) * rng.normal(size=(STEPS, *shape))
        for name, shape in SHAPES.items()
    }
    grads["w"][2] = 0
    grads["k"][:, 2] = 0
    return params, grads


def check(tx, reference, seed, per_leaf=None, **arguments):
    """Every leaf of every step agrees; `per_leaf` changes arguments for some leaves."""
    params, grads = make_problem(seed)
    with enable_x64():
        path = trajectory(
            tx,
            jax.tree.map(jnp.asarray, params),
            [{name: jnp.asarray(g[t]) for name, g in grads.items()} for t in range(STEPS)],
            jit=False,  # compiles each operation once for all examples
        )
        for name in SHAPES:
            mine = np.stack([step[name] for step in path])
            special = (per_leaf or {}).get(name, {})
            expected = reference(params[name], grads[name], **{**arguments, **special})
            np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-12, err_msg=name)


def rate_arguments(rate, drops):
    """A rate for us and for the reference: a number, or a schedule and its values."""
    if not drops:
        return rate, rate
    schedule = lambda count: jnp.where(count < DROP, rate, rate * 0.1)  # noqa: E731
    return schedule, np.where(np.arange(STEPS) < DROP, rate, rate * 0.1)


@few
@given(seeds, rates, decays, decays, weight_decays, st.booleans())
def test_lion(seed, rate, b1, b2, wd, drops):
    ours, theirs = rate_arguments(rate, drops)
    tx = zoo.lion(ours, b1, b2, weight_decay=wd, mask={"w": True, "k": True, "s": False})
    check(tx, references.lion, seed, {"s": {"wd": 0.0}}, lr=theirs, b1=b1, b2=b2, wd=wd)


trust_options = st.fixed_dictionaries(
    {
        "clip": st.sampled_from([None, (0.0, 0.5), (2.0, np.inf), (0.1, 10.0)]),
        "axes": st.sampled_from([0, 1, 2]),
        "drops": st.booleans(),
    }
)


def layer_axes(axes):
    """Leading axes of `k`, at most one of `w`, none of the scalar."""
    return {"w": min(axes, 1), "k": axes, "s": 0}


def trust_by_leaf(axes):
    return {"w": {"axes": min(axes, 1)}, "k": {"axes": axes}, "s": {"wd": 0.0, "adapt": False}}


@few
@given(seeds, rates, decays, weight_decays, st.booleans(), st.floats(0, 0.1), trust_options)
def test_lars(seed, rate, momentum, wd, nesterov, eps, options):
    ours, theirs = rate_arguments(rate, options["drops"])
    matrices = {"w": True, "k": True, "s": False}
    tx = zoo.lars(
        ours,
        wd,
        matrices,
        trust_coefficient=0.02,
        eps=eps,
        trust_ratio_mask=matrices,
        momentum=momentum,
        nesterov=nesterov,
        trust_clip=options["clip"],
        layer_axes=layer_axes(options["axes"]),
    )
    check(
        tx,
        references.lars,
        seed,
        trust_by_leaf(options["axes"]),
        lr=theirs,
        wd=wd,
        coefficient=0.02,
        eps=eps,
        momentum=momentum,
        nesterov=nesterov,
        clip=options["clip"],
    )


@few
@given(seeds, rates, decays, decays, weight_decays, st.sampled_from([0.0, 1e-3]), trust_options)
def test_lamb(seed, rate, b1, b2, wd, eps_root, options):
    ours, theirs = rate_arguments(rate, options["drops"])
    matrices = {"w": True, "k": True, "s": False}
    tx = zoo.lamb(
        ours,
        b1,
        b2,
        1e-6,
        eps_root,
        wd,
        matrices,
        trust_ratio_mask=matrices,
        trust_clip=options["clip"],
        layer_axes=lambda path, leaf: layer_axes(options["axes"])[path[0]],
    )
    check(
        tx,
        references.lamb,
        seed,
        trust_by_leaf(options["axes"]),
        lr=theirs,
        b1=b1,
        b2=b2,
        eps_root=eps_root,
        wd=wd,
        clip=options["clip"],
    )


@few
@given(
    seeds,
    st.sampled_from(["adabound", "amsbound", "adaboundw"]),
    st.fixed_dictionaries(
        {
            "b1": decays,
            "b2": decays,
            "gamma": st.floats(1e-3, 1.0),
            "eps": st.floats(1e-9, 1e-3),
            "final_lr": st.floats(1e-3, 1.0),
        }
    ),
    rates,
    weight_decays,
    st.booleans(),
)
def test_adabound_and_its_kin(seed, name, numbers, rate, wd, drops):
    ours, theirs = rate_arguments(rate, drops)
    tx = getattr(zoo, name)(
        ours,
        base_lr=rate if drops else None,
        weight_decay=wd,
        mask=lambda params: {leaf: leaf != "s" for leaf in params},
        **numbers,
    )
    check(
        tx,
        references.adabound,
        seed,
        {"s": {"wd": 0.0}},
        lr=theirs,
        base_lr=rate,
        wd=wd,
        amsbound=name == "amsbound",
        decoupled=name == "adaboundw",
        **numbers,
    )


@few
@given(
    seeds,
    st.sampled_from(["adax", "adaxw"]),
    rates,
    decays,
    st.floats(1e-5, 0.1),  # with more, epsilon's share differs: see test_adax.py
    weight_decays,
    st.booleans(),
)
def test_adax_and_adaxw(seed, name, rate, b1, b2, wd, drops):
    ours, theirs = rate_arguments(rate, drops)
    tx = getattr(zoo, name)(ours, b1, b2, weight_decay=wd, mask={"w": True, "k": True, "s": False})
    check(
        tx,
        references.adax,
        seed,
        {"s": {"wd": 0.0}},
        lr=theirs,
        b1=b1,
        b2=b2,
        wd=wd,
        decoupled=name == "adaxw",
    )
