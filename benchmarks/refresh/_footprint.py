"""What needs no clock of the device: bytes of state, and CPU time of compilation."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_zoo as zoo
from benchmarks.refresh._common import Row, Size, bytes_of, structs, training_step


def state_rows(size: Size) -> list[Row]:
    """Bytes of state over Adam's."""
    params, n = size.structs(), size.order
    bf16 = zoo.Roots(dtype=jnp.bfloat16)
    quarter, one_sided = zoo.Blocks(size=n // 4), zoo.Blocks(size=n, one_sided_above=n)
    configurations: dict[str, tuple[optax.GradientTransformation, float | None]] = {
        "default": (zoo.shampoo(1e-3, blocks=size.blocks), 2.55),
        "graft_to=None": (zoo.shampoo(1e-3, blocks=size.blocks, graft_to=None), 2.05),
        "drift correction": (
            zoo.shampoo(1e-3, blocks=size.blocks, refresh=zoo.Refresh(drift_every=10)),
            None,
        ),
        "b1=0": (zoo.shampoo(1e-3, blocks=size.blocks, b1=0), None),
        "roots in bfloat16": (zoo.shampoo(1e-3, blocks=size.blocks, roots=bf16), None),
        f"blocks of {n // 4}": (zoo.shampoo(1e-3, blocks=quarter), None),
        f"no factors for axes above {n}": (zoo.shampoo(1e-3, blocks=one_sided), None),
    }
    adam = bytes_of(jax.eval_shape(optax.adam(1e-3).init, params))
    return [
        Row(
            "state",
            f"state / Adam's: {name}",
            bytes_of(jax.eval_shape(tx.init, params)) / adam,
            bar=bar,
        )
        for name, (tx, bar) in configurations.items()
    ]


def _layers(depth: int, n: int) -> dict[str, tuple[int, ...]]:
    kinds = {"square": (n, n), "bias": (n,), "wide": (n, 4 * n)}
    return {f"{kind}{i}": shape for i in range(depth) for kind, shape in kinds.items()}


def _compile_seconds(tx: optax.GradientTransformation, shapes: dict[str, Any]) -> float:
    """CPU time, all threads, of lowering and compiling an update that no cache knows."""
    jax.clear_caches()
    params = structs(shapes)
    state = jax.eval_shape(tx.init, params)
    step = training_step(tx, lambda _, gradients: gradients)
    start = time.process_time()
    jax.jit(step, donate_argnums=0).lower((params, state), params).compile()
    return time.process_time() - start


def compile_rows(size: Size, repeats: int) -> list[Row]:
    """CPU time of compilation, by depth and by size of the blocks."""
    n = size.order
    ours = zoo.shampoo(1e-3, blocks=size.blocks)
    small = zoo.shampoo(1e-3, blocks=zoo.Blocks(size=n // 4))
    adamw = optax.adamw(1e-3)
    cases = {
        "tree": (ours, size.shapes()),
        "tree, small blocks": (small, size.shapes()),
        "12": (ours, _layers(12, n)),
        "48": (ours, _layers(48, n)),
        "adamw 12": (adamw, _layers(12, n)),
        "adamw 48": (adamw, _layers(48, n)),
    }
    _compile_seconds(ours, size.shapes())  # the first one imports and initialises
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(repeats):
        for name, case in cases.items():
            best[name] = min(best[name], _compile_seconds(*case))
    growth, adamws = best["48"] / best["12"], best["adamw 48"] / best["adamw 12"]
    return [
        Row("compile", "compiling the plain step's program, CPU time", best["tree"], "s", 3.0),
        Row(
            "compile",
            f"the same with blocks of {n // 4} / of {n}",
            best["tree, small blocks"] / best["tree"],
            bar=1.2,
        ),
        Row("compile", "12 layers, CPU time", best["12"], "s"),
        Row("compile", "48 layers, CPU time", best["48"], "s"),
        Row(
            "compile",
            "growth from 12 to 48 layers / AdamW's own",
            growth / adamws,
            bar=1.5,
            note=f"{growth:.2f} over {adamws:.2f} (AdamW {best['adamw 48']:.2g} s at 48)",
        ),
    ]
