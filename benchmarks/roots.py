"""What an inverse p-th root costs, against eigendecompositions and Optax.

Costs are also given in products of the same size, dtype and run: XLA's for what XLA computes,
NumPy's for what NumPy does. NumPy's and SciPy's BLAS has one thread, as on the host's workers; XLA
has its own. "host" is what the workers run, with the certificate; "XLA" is `inverse_pth_root`
compiled. All methods of a case are interleaved, and each is judged by its fastest sample.

    python -m benchmarks.roots
    python -m benchmarks.roots --quick
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import tyro
from optax._src.linear_algebra import matrix_inverse_pth_root
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.update_speed import machine
from optax_zoo._host_roots import inverse_pth_roots
from optax_zoo._matrix_roots import inverse_pth_root

HEADINGS = ("n", "ridge", "p", "method", "ms", "products", "to NumPy's eigh", "error")
CASES = ((1e-4, 2), (1e-6, 2), (1e-4, 4), (1e-6, 4), (1e-11, 2))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times inverse roots in float64."""

    quick: bool = False
    """Only sizes up to 512 and the two cases with a bar."""
    samples: int = 5
    """Interleaved samples of each; the fastest counts."""

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"samples must be >= 1, got {self.samples}; 5 is the default")


def statistics(n: int) -> np.ndarray:
    """A symmetric matrix with eigenvalues from 1e-10 to 1."""
    q = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]
    a = (q * np.geomspace(1e-10, 1, n)) @ q.T
    return (a + a.T) / 2


def by_eigenvectors(eigh: Callable[..., Any], a: np.ndarray, p: int, ridge: float) -> np.ndarray:
    eigenvalues, vectors = eigh(a)
    half = vectors * (np.maximum(eigenvalues, 0) + ridge * eigenvalues[-1]) ** (-0.5 / p)
    return half @ half.T


def methods(a: np.ndarray, p: int, ridge: float) -> dict[str, Callable[[], Any]]:
    """Calls that each give the root, and one product."""
    x = jnp.asarray(a)

    def compiled(function: Callable[[jax.Array], Any]) -> Callable[[], Any]:
        program = jax.jit(function).lower(x).compile()
        return lambda: jax.block_until_ready(program(x))

    b = a.copy()  # NumPy knows a product with itself
    return {
        "NumPy product": lambda: a @ b,
        "XLA product": compiled(lambda a: jnp.matmul(a, a, precision="highest")),
        "host schur_newton": lambda: inverse_pth_roots(a[None], p, "schur_newton", ridge)[0][0],
        "host eigh": lambda: inverse_pth_roots(a[None], p, "eigh", ridge)[0][0],
        "XLA schur_newton": compiled(lambda a: inverse_pth_root(a, p, ridge=ridge)[0]),
        "XLA eigh": compiled(lambda a: inverse_pth_root(a, p, ridge=ridge, method="eigh")[0]),
        "NumPy eigh": lambda: by_eigenvectors(np.linalg.eigh, a, p, ridge),
        "SciPy eigh (evr)": lambda: by_eigenvectors(scipy.linalg.eigh, a, p, ridge),
        "XLA optax (float32)": compiled(
            lambda a: matrix_inverse_pth_root(a.astype(jnp.float32), p, ridge_epsilon=ridge)[0]
        ),
    }


def product_of(name: str) -> str:
    return "XLA product" if name.startswith("XLA") else "NumPy product"


def measure(a: np.ndarray, p: int, ridge: float, samples: int) -> list[tuple[str, ...]]:
    """The table's rows of one case."""
    calls = methods(a, p, ridge)
    best = dict.fromkeys(calls, float("inf"))
    roots = {name: np.asarray(call()) for name, call in calls.items()}
    for _ in range(samples):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    exact = roots["NumPy eigh"]
    return [
        (
            str(len(a)),
            f"{ridge:.0e}",
            str(p),
            name,
            f"{best[name] * 1e3:.2f}",
            f"{best[name] / best[product_of(name)]:.1f}",
            f"{best[name] / best['NumPy eigh']:.2f} ×",
            "" if "product" in name else f"{np.abs(root - exact).max() / np.abs(exact).max():.0e}",
        )
        for name, root in roots.items()
    ]


def main(settings: Settings) -> None:
    """Measures every case and prints one table per size."""
    jax.config.update("jax_enable_x64", True)
    console = Console()
    with threadpool_limits(1):
        for n in (128, 256, 512) if settings.quick else (128, 256, 512, 1024):
            table = Table(*HEADINGS, title=f"Inverse roots of a {n} × {n} matrix, float64")
            for ridge, p in (CASES[0], CASES[3]) if settings.quick else CASES:
                for row in measure(statistics(n), p, ridge, settings.samples):
                    table.add_row(*row)
                table.add_section()
            console.print(table)
    console.print(machine(), highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Settings))
