"""A plain step, that neither begins nor adopts roots, against its own products and a correction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_zoo as zoo
from benchmarks.refresh._common import (
    FOREVER,
    Program,
    Row,
    Size,
    bytes_of,
    interleave,
    refreshed,
    training_step,
)

_BLOCKS, _PRODUCTS = 22, 88
_HIGHEST = jax.lax.Precision.HIGHEST


def _optimizer(size: Size, tx: optax.GradientTransformation) -> Program:
    params = size.arrays(seed=0)
    state = refreshed(tx.init(params), count=FOREVER // 2 + 1)
    step = training_step(tx, lambda _, gradients: gradients)
    return Program(step, (params, state), size.arrays(seed=1))


def _products(size: Size) -> Program:
    """Four products for each block, all blocks at once; the outputs' buffers are used again."""
    rng = np.random.default_rng(0)
    shape = (_BLOCKS, size.order, size.order)

    def some():
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(size.order), jnp.float32)

    def four(_, g, m, p, q):
        left = jnp.einsum("kab,kcb->kac", g, g, precision=_HIGHEST)
        right = jnp.einsum("kab,kac->kbc", g, g, precision=_HIGHEST)
        m = jnp.einsum("kza,kab->kzb", p, m, precision=_HIGHEST)
        return left, right, jnp.einsum("kzb,kab->kaz", q, m, precision=_HIGHEST)

    return Program(four, (some(), some(), some()), some(), some(), some(), some())


def _chained(size: Size, form: str) -> Program:
    """88 products in a row, each of one pair of matrices."""
    rng = np.random.default_rng(0)
    n = size.order
    a, x = (jnp.asarray(rng.normal(size=(n, n)) / np.sqrt(n), jnp.float32) for _ in range(2))

    def chain(x, a):
        def one(_, x):
            return jnp.einsum(form, a, x, precision=_HIGHEST)

        return jax.lax.fori_loop(0, _PRODUCTS, one, x)

    return Program(chain, x, a)


def rows(size: Size) -> list[Row]:
    """The plain step over its products batched, over single products, over Adam."""
    off = zoo.Refresh(every=FOREVER)
    tx = zoo.shampoo(1e-3, blocks=size.blocks, refresh=off)
    plain, adam = _optimizer(size, tx), _optimizer(size, optax.adam(1e-3))
    drifting = zoo.Refresh(every=FOREVER, drift_every=1)  # corrected in each step
    correction = _optimizer(size, zoo.shampoo(1e-3, blocks=size.blocks, refresh=drifting))
    batched = _products(size)
    forms = ("ab,bc->ac", "ba,bc->ac", "ab,cb->ac")
    singles = [_chained(size, form) for form in forms]
    interleave([plain, correction, adam, batched, *singles], size.samples, "plain step")
    single = min(singles, key=lambda program: program.best)

    def row(what, other, bar=None, note=""):
        medians = f"{plain.median / other.median:.2f} by medians"
        return Row(
            "plain",
            what,
            plain.best / other.best,
            bar=bar,
            note="; ".join(filter(None, [medians, note])),
        )

    milliseconds = f"{plain.best * 1e3:.3g} ms over {batched.best * 1e3:.3g} ms"
    adams = bytes_of(adam.carry[1])
    return [
        row("plain step / its own 88 products, batched", batched, 1.3, milliseconds),
        row(f"plain step / 88 × the best single {size.order}³ product", single),
        Row("plain", "88 products batched / 88 × the best single one", batched.best / single.best),
        row("plain step / a step of optax.adam", adam, note=f"Adam {adam.best * 1e3:.3g} ms"),
        Row(
            "plain",
            "a step with drift correction / plain step",
            correction.best / plain.best,
            note=f"{correction.best * 1e3:.3g} ms",
        ),
        Row("plain", "temporaries of the plain step / Adam's state", plain.temporaries / adams),
    ]
