"""Libraries that train with Optax, with nothing but the optimizer exchanged.

Each is skipped where it is not installed; `pip install -e '.[test,clients]'` has them all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import helpers
import optax_zoo as zoo

STEPS = 6
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.tanh(X @ np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))


def optimizers(decay: float) -> dict[str, optax.GradientTransformationExtraArgs]:
    refresh = zoo.Refresh(every=2, start=1)
    return {
        "lion": zoo.lion(1e-2, weight_decay=decay),
        "lamb": zoo.lamb(1e-2, weight_decay=decay),
        "adabound": zoo.adabound(1e-2, weight_decay=decay),
        "amos": zoo.amos(0.1, lambda name, shape: 0.5, extra_l2=decay),
        "shampoo": zoo.shampoo(1e-2, weight_decay=decay, refresh=refresh),
    }


DECAYING, PLAIN = optimizers(0.01), optimizers(0.0)
every_optimizer = pytest.mark.parametrize("name", helpers.some(DECAYING, "lion", "shampoo"))


class Client(NamedTuple):
    """A library at a small task, and what a plain loop needs to repeat it.

    Attributes:
      start: The parameters before the first step, in the library's own tree.
      loss: (parameters, step) -> what that step descends.
      train: transformation -> the parameters after `STEPS` steps.
    """

    start: Any
    loss: Callable[[Any, Any], Any]
    train: Callable[..., Any]


def squared_error(predictions: Any) -> Any:
    return jnp.mean((predictions - Y) ** 2)


def flax_linen() -> Client:
    model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)])
    start = model.init(KEY, X)["params"]

    def loss(params, _=0):
        return squared_error(model.apply({"params": params}, X))

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    def train(tx):
        state = train_state.TrainState.create(apply_fn=model.apply, params=start, tx=tx)
        for _ in range(STEPS):
            state = step(state)
        return state.params

    return Client(start, loss, train)


def flax_nnx() -> Client:
    layers = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    graph, start = nnx.split(nnx.Sequential(*layers), nnx.Param)

    def loss(params, _):
        return squared_error(nnx.merge(graph, params)(X))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: squared_error(model(X)))(model))

    def train(tx):
        model = nnx.merge(graph, jax.tree.map(jnp.copy, start))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(STEPS):
            step(model, optimizer)
        return nnx.state(model, nnx.Param)

    return Client(start, loss, train)


def equinox() -> Client:
    """The parameters have None where the model has functions."""
    eqx = pytest.importorskip("equinox")
    original = eqx.nn.MLP(4, 3, 8, 1, jnp.tanh, key=KEY)
    start, static = eqx.partition(original, eqx.is_inexact_array)

    def loss(params, _):
        return squared_error(jax.vmap(eqx.combine(params, static))(X))

    def train(tx):
        @eqx.filter_jit
        def step(model, state):
            grads = eqx.filter_grad(lambda model: squared_error(jax.vmap(model)(X)))(model)
            updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
            return eqx.apply_updates(model, updates), state

        model, state = original, tx.init(start)
        for _ in range(STEPS):
            model, state = step(model, state)
        return eqx.filter(model, eqx.is_inexact_array)

    return Client(start, loss, train)


def diffrax() -> Client:
    """A neural ODE; diffrax's own examples do not give `update` the parameters."""
    diffrax, eqx = pytest.importorskip("diffrax"), pytest.importorskip("equinox")
    start, static = eqx.partition(eqx.nn.MLP(3, 3, 8, 1, key=KEY), eqx.is_inexact_array)

    def loss(params, _=0):
        field = diffrax.ODETerm(lambda t, y, args: jax.vmap(eqx.combine(params, static))(y))
        time = {"t0": 0.0, "t1": 1.0, "dt0": 0.25, "max_steps": 4}
        return squared_error(diffrax.diffeqsolve(field, diffrax.Euler(), **time, y0=X[:, :3]).ys[0])

    def train(tx, *, give_params=True):
        @eqx.filter_jit
        def step(params, state):
            grads = eqx.filter_grad(loss)(params)
            updates, state = tx.update(grads, state, *([params] if give_params else []))
            return eqx.apply_updates(params, updates), state

        params, state = start, tx.init(start)
        for _ in range(STEPS):
            params, state = step(params, state)
        return params

    return Client(start, loss, train)


def flowjax() -> Client:
    """A normalizing flow. Whole batches, so that it does not matter how they are shuffled."""
    eqx, paramax = pytest.importorskip("equinox"), pytest.importorskip("paramax")
    flows, training = pytest.importorskip("flowjax.flows"), pytest.importorskip("flowjax.train")
    base = pytest.importorskip("flowjax.distributions").Normal(jnp.zeros(3))
    flow = flows.coupling_flow(KEY, base_dist=base, flow_layers=1, nn_width=8)
    split_off = jax.random.split(KEY)[1]
    (batch,), _ = training.train_utils.train_val_split(split_off, (jnp.asarray(Y),))

    def partition(flow):
        fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
        return eqx.partition(flow, eqx.is_inexact_array, is_leaf=fixed)

    start, static = partition(flow)

    def loss(params, _):
        return training.losses.MaximumLikelihoodLoss()(params, static, batch, key=KEY)

    def train(tx):
        trained, _ = training.fit_to_data(
            KEY, flow, Y, optimizer=tx, max_epochs=STEPS, return_best=False, show_progress=False
        )
        return partition(trained)[0]

    return Client(start, loss, train)


def numpyro() -> Client:
    """Stochastic variational inference; each step has its own random numbers."""
    numpyro, infer = pytest.importorskip("numpyro"), pytest.importorskip("numpyro.infer")
    distributions = pytest.importorskip("numpyro.distributions")

    def model():
        w = numpyro.sample("w", distributions.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        scale = numpyro.sample("scale", distributions.HalfNormal(1.0))
        numpyro.sample("y", distributions.Normal(X @ w, scale).to_event(2), obs=Y)

    guide = infer.autoguide.AutoNormal(model)

    def inference(tx):
        return infer.SVI(model, guide, tx, infer.Trace_ELBO())

    svi = inference(optax.identity())
    state = svi.init(KEY)
    start, keys = svi.optim.get_params(state.optim_state), [state.rng_key]
    for _ in range(STEPS):  # as SVI splits its own: one for the rest, one for this step
        keys[-1:] = jax.random.split(keys[-1])[::-1]
    keys = jnp.stack(keys)

    def loss(params, step):
        return svi.loss.loss(keys[step], svi.constrain_fn(params), model, guide)

    def train(tx):
        svi = inference(tx)
        final = svi.run(KEY, STEPS, progress_bar=False).state
        return svi.optim.get_params(final.optim_state)

    return Client(start, loss, train)


def optimistix() -> Client:
    """The parameters are a bare array, and the transformation's closures are made anew."""
    optx = pytest.importorskip("optimistix")
    start = jax.random.normal(KEY, (4, 3))

    def loss(params, _):
        return squared_error(X @ params)

    def train(tx):
        solver = optx.OptaxMinimiser(tx, rtol=0.0, atol=0.0)
        return optx.minimise(loss, solver, start, max_steps=STEPS, throw=False).value

    return Client(start, loss, train)


CLIENTS = [flax_linen, flax_nnx, equinox, diffrax, flowjax, numpyro, optimistix]
prepared = functools.cache(lambda client: client())


@functools.cache
def loss_and_slopes(client: Callable[[], Client]) -> Callable[[Any, Any], Any]:
    """(leaves, step) -> loss and its gradient; compiled once for all optimizers."""
    start, loss, _ = prepared(client)
    tree = jax.tree.structure(start)
    return jax.jit(jax.value_and_grad(lambda leaves, t: loss(jax.tree.unflatten(tree, leaves), t)))


def plain_loop(tx: optax.GradientTransformation, client: Callable[[], Client]) -> list[Any]:
    """The leaves of the parameters after as many steps of the loop in Optax's documentation."""
    leaves = jax.tree.leaves(prepared(client).start)
    step, state = helpers.jitted_step(tx), tx.init(leaves)
    for t in range(STEPS):
        leaves, state = step(leaves, state, loss_and_slopes(client)(leaves, t)[1])
    return leaves


@every_optimizer
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_a_client_trains_as_the_plain_loop_does(client, name):
    start, _, train = prepared(client)
    end = train(DECAYING[name])
    assert jax.tree.structure(end) == jax.tree.structure(start)
    helpers.assert_finite(end)
    before, after = (loss_and_slopes(client)(jax.tree.leaves(p), 0)[0] for p in (start, end))
    assert after < before
    desired = plain_loop(DECAYING[name], client)
    helpers.assert_close(jax.tree.leaves(end), desired, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lion", "adabound", "shampoo"])
def test_diffrax_gives_no_parameters_and_none_are_needed(name):
    end = prepared(diffrax).train(PLAIN[name], give_params=False)
    helpers.assert_close(jax.tree.leaves(end), plain_loop(PLAIN[name], diffrax), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "who"), [("lamb", "the layer-wise trust ratio"), ("amos", "Amos")]
)
def test_diffrax_gives_no_parameters_and_is_asked_for_them(name, who):
    asks = rf"params is None, and {who} needs the parameters; call update\(gradients, state, p"
    with pytest.raises(ValueError, match=asks):
        prepared(diffrax).train(PLAIN[name], give_params=False)
