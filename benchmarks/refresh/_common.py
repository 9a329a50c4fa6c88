"""The parameters that are timed, compiled programs, and a row of the table."""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

import optax_zoo as zoo
from optax_zoo._shampoo import _statistics

FOREVER = 10**6
"""An interval that no run gets to the end of: refresh is switched off."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
      order: n; the parameters are 6 × (n², n) and 4 × n × 4n, cut into 22 blocks of n².
      samples: Interleaved samples of each program.
      refreshes: Begin and adopt steps to see.
      tokens: Tokens of a stand-in model in a training step; 0: gradients are given.
    """

    order: int
    samples: int
    refreshes: int
    tokens: int

    @property
    def blocks(self) -> zoo.Blocks:
        """Blocks of n²."""
        return zoo.Blocks(size=self.order)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters, by name."""
        n = self.order
        square = {f"square{i}": (n, n) for i in range(6)}
        bias = {f"bias{i}": (n,) for i in range(6)}
        return {**square, **bias, **{f"wide{i}": (n, 4 * n) for i in range(4)}}

    def structs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters' shapes and types."""
        return structs(self.shapes())

    def arrays(self, seed: int, scale: float = 1.0) -> dict[str, jax.Array]:
        """Random arrays in these shapes, with a spectrum of two decades."""
        rng = np.random.default_rng(seed)

        def array(shape):
            decades = np.logspace(0, -2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
            return jnp.asarray(scale * decades * rng.normal(size=shape), jnp.float32)

        return {name: array(shape) for name, shape in self.shapes().items()}


def structs(shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    """float32 arrays to be."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


class Row(NamedTuple):
    """A figure, the bar of DESIGN §6 that it is held to (None: none) and what else to know."""

    group: str
    what: str
    value: float
    unit: str = "×"
    bar: float | None = None
    note: str = ""

    @property
    def met(self) -> str:
        """Whether the bar is met, in a word."""
        return "–" if self.bar is None else "yes" if self.value <= self.bar else "no"


class Program:
    """A compiled function of a carry, which is donated, and of other arrays, timed by call."""

    def __init__(self, function: Callable[..., Any], carry: Any, *extra: Any):
        jitted = jax.jit(function, donate_argnums=0, keep_unused=True)
        self.compiled = jitted.lower(carry, *extra).compile()
        self.carry, self.extra = carry, extra
        self.seconds: list[float] = []

    def call(self) -> tuple[float, float]:
        """One call seen through; when it started and when it ended."""
        start = time.perf_counter()
        self.carry = self.compiled(self.carry, *self.extra)
        jax.block_until_ready(self.carry)
        end = time.perf_counter()
        self.seconds.append(end - start)
        return start, end

    @property
    def best(self) -> float:
        """The fastest call."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median call."""
        return float(np.median(self.seconds))

    @property
    def temporaries(self) -> float:
        """Bytes of scratch memory."""
        return float(getattr(self.compiled.memory_analysis(), "temp_size_in_bytes", np.nan))


def interleave(programs: Sequence[Program], samples: int, title: str) -> None:
    """Times programs in turn, after two calls that warm up; a call shorter than 1 ms, in tens."""
    for program in programs:
        program.call()
        program.call()
        program.seconds.clear()
    gc.collect()
    for _ in track(range(samples), description=title, transient=True):
        for program in programs:
            for _ in range(10 if program.seconds and program.seconds[0] < 1e-3 else 1):
                program.call()


def training_step(tx: optax.GradientTransformation, gradient: Callable[..., Any]) -> Any:
    """((parameters, state), batch) -> (parameters, state)."""

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(gradient(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return step


def refreshed(state: Any, count: int) -> Any:
    """A state after `count` steps whose every factor has a root in use, some random one."""

    def with_roots(node):
        if not isinstance(node, _statistics.Factors):
            return node
        n = node.roots.shape[-2]
        rng = np.random.default_rng(0)
        roots = rng.normal(size=node.roots.shape) / np.sqrt(n)
        return node._replace(
            roots=jnp.asarray(roots, node.roots.dtype), age=jnp.zeros_like(node.age)
        )

    state = jax.tree.map(
        with_roots, state, is_leaf=lambda node: isinstance(node, _statistics.Factors)
    )
    return optax.tree.set(state, count=jnp.asarray(count, jnp.int32))


def bytes_of(tree: Any) -> int:
    """The size of a tree of arrays or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
