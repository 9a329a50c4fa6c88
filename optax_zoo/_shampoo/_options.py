"""Errors about the options that Shampoo and SOAP share."""

from typing import Any

import jax

from optax_zoo import _blocks, _checks
from optax_zoo._shampoo._roots import Roots
from optax_zoo._shampoo._schedule import Refresh


def check_options(nesterov: Any, blocks: Any, refresh: Any, roots: Any, mesh: Any) -> None:
    """Raises unless the flag and the option groups are what they are called, and mesh is None."""
    _checks.check_flag("nesterov", nesterov)
    groups = {"blocks": (blocks, _blocks.Blocks), "refresh": (refresh, Refresh)}
    for name, (value, kind) in {**groups, "roots": (roots, Roots)}.items():
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be a {kind.__name__}, got {value!r}; pass e.g. {kind.__name__}()"
            )
    if mesh is not None:
        raise ValueError(
            f"mesh must be None, got {mesh!r}: the state is not divided over devices; leave it out"
        )


def check_callbacks(roots: Roots) -> None:
    """Raises if roots are wanted from a host that JAX was told to do without."""
    if roots.on == "device":
        return
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise ValueError(
            f"roots is {roots!r}, and JAX runs without a CPU backend; set JAX_PLATFORMS=cuda,cpu "
            '(your platform, then cpu), or pass roots=Roots(on="device")'
        ) from error
