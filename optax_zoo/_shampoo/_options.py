"""Errors about the options that Shampoo and SOAP share."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType

from optax_zoo import _blocks, _checks, _layers, _owners, _states
from optax_zoo._shampoo._roots import Roots
from optax_zoo._shampoo._schedule import Refresh
from optax_zoo._shampoo._statistics import Stack

# From which jax.pure_callback reaches the host.
_WITH_CALLBACKS = {"cpu", "gpu", "cuda", "rocm", "tpu"}


def check_options(nesterov: Any, blocks: Any, refresh: Any, roots: Any) -> None:
    """Raises unless the flag and the option groups are what they are called."""
    _checks.check_flag("nesterov", nesterov)
    groups = {"blocks": (blocks, _blocks.Blocks), "refresh": (refresh, Refresh)}
    for name, (value, kind) in {**groups, "roots": (roots, Roots)}.items():
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be a {kind.__name__}, got {value!r}; pass e.g. {kind.__name__}()"
            )


def check_shampoo(
    b1: Any, b2: Any, eps: Any, exponent: Any, init_epsilon: Any, graft_to: Any
) -> None:
    """Raises unless these arguments of Shampoo's are in range."""
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_number("b2", b2, at_least=0.0, remedy="pass e.g. 0.95, or 1 for a sum")
    if not isinstance(b2, jax.Array) and b2 > 1:
        raise ValueError(f"b2 must be <= 1, got {b2!r}; pass e.g. 0.95, or 1 for a sum")
    _checks.check_number("eps", eps, at_least=_checks.LEAST_EPS, remedy="pass e.g. 1e-8")
    _checks.check_number("init_epsilon", init_epsilon, at_least=0.0, remedy="pass 0 or e.g. 1e-4")
    if exponent is not None:
        _checks.check_integer(
            "exponent", exponent, at_least=1, remedy="pass p of the root A^(-1/p), e.g. 2"
        )
    _check_graft(graft_to, b2)


def _check_graft(graft_to: Any, b2: Any) -> None:
    """Raises unless Shampoo can take its norms from there."""
    if graft_to is None:
        return
    if not isinstance(graft_to, str):
        _checks.check_transformation("graft_to", graft_to)
    elif graft_to != "adam":
        raise ValueError(
            f'graft_to must be "adam", a transformation or None, got {graft_to!r}; pass e.g. '
            "optax.identity() for the gradient's own norm"
        )
    elif not isinstance(b2, jax.Array) and b2 == 1:
        raise ValueError(
            'graft_to is "adam" and b2 is 1: Adam\'s second moment is no sum; pass '
            "graft_to=optax.scale_by_rss() for AdaGrad's norm, or b2 < 1"
        )


def owners(mesh: Any, mesh_axes: Any, roots: Roots) -> _owners.Owners | None:
    """The devices of a mesh that divide the state among them; None without a mesh."""
    if mesh is None:
        if mesh_axes is not None:
            raise ValueError(
                f"mesh_axes is {mesh_axes!r} and mesh is None; pass the mesh that has these axes"
            )
        return None
    if not isinstance(mesh, (jax.sharding.Mesh, jax.sharding.AbstractMesh)):
        raise TypeError(
            f'mesh must be a jax.sharding.Mesh, got {mesh!r}; pass jax.make_mesh((8,), ("data",)), '
            "in static_args of optax.inject_hyperparams, which takes a mesh for a schedule; or "
            "leave it out"
        )
    axes = mesh.axis_names if mesh_axes is None else mesh_axes
    axes = (axes,) if isinstance(axes, str) else axes
    if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, str) for axis in axes):
        raise TypeError(
            f"mesh_axes must be a name or several, got {mesh_axes!r}; pass e.g. "
            f"{mesh.axis_names[:1]!r}, or None for all"
        )
    axes = tuple(axes)
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= set(mesh.axis_names):
        raise ValueError(
            f"mesh_axes must name axes of the mesh, each once, got {mesh_axes!r} for a mesh with "
            f"the axes {mesh.axis_names!r}; pass some of them, or None for all"
        )
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if len({kinds[axis] for axis in axes}) > 1:
        raise ValueError(
            f"mesh has axes of several types, {kinds!r}; pass those of one type as mesh_axes"
        )
    if roots.on == "host":
        _check_host_of(mesh)
    return _owners.Owners(mesh, axes)


def _check_host_of(mesh: Any) -> None:
    """Raises if what runs on the mesh cannot call the host."""
    remedy = 'pass roots=Roots(on="device")'
    if jax.__version_info__ < (0, 8):
        raise ValueError(
            f"mesh is given and roots are to come from the host, which takes JAX 0.8, got JAX "
            f"{jax.__version__}; {remedy}, or upgrade"
        )
    if isinstance(mesh, jax.sharding.AbstractMesh):
        return
    platforms = {device.platform for device in mesh.devices.flat}
    if other := platforms - _WITH_CALLBACKS:
        raise ValueError(
            f"mesh has devices of the platform {min(other)!r}, from which JAX cannot call the "
            f"host; {remedy}"
        )


def check_placement(params: Any, owners: _owners.Owners | None) -> None:
    """Raises if parameters lie on other devices than the mesh, or in another order."""
    if owners is None:
        return
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
            continue
        name = _layers.joined(_layers.path_names(path))
        if isinstance(owners.mesh, jax.sharding.AbstractMesh):
            raise ValueError(
                f"mesh is {owners.mesh!r}, which has no devices, and the parameter {name} is an "
                "array; pass the mesh itself, or call init within jax.eval_shape"
            )
        if leaf.committed and not _is_on(owners.mesh, leaf.sharding):
            raise ValueError(
                f"mesh is {owners.mesh!r}, and the parameter {name} lies elsewhere, or on its "
                f"devices in another order: {leaf.sharding!r}; pass the mesh of the parameters, or "
                "move them with jax.device_put"
            )


def _is_on(mesh: jax.sharding.Mesh, sharding: Any) -> bool:
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding.device_set == set(mesh.devices.flat)
    other: Any = sharding.mesh
    if AxisType.Explicit in (*mesh.axis_types, *other.axis_types):  # then they are one program's
        return other == mesh
    return [*other.devices.flat] == [*mesh.devices.flat]


def layout(plan: _blocks.Plan) -> dict[str, Any]:
    """What a state must agree in for each leaf, though the shapes of stacks may not tell."""
    return {"layer_axes with blocks, as (layers, *axes) of each leaf,": plan.cores}


def check_state(
    state: Any,
    kind: type,
    field: str,
    plan: _blocks.Plan,
    stacks: Sequence[Stack],
    blocks: _blocks.Blocks,
    owners: _owners.Owners | None,
    updates: Any,
    facts: Mapping[str, Any],
) -> None:
    """Raises unless a state is one of these parameters, cut like that and divided like that."""
    _states.check_kind(state, kind)
    _states.check_described(kind.__name__, state.parameters, updates, facts)
    found = getattr(state, field)
    for own in found:
        was = 1 if own.blocks is None else len(own.blocks)
        if (own.blocks is None) != (owners is None) or (owners and was != owners.count):
            now = "mesh is None" if owners is None else f"mesh divides it among {owners.count}"
            divided = "whole" if own.blocks is None else f"divided among {was} devices"
            raise ValueError(
                f"{now}, and the {kind.__name__} is {divided}; move it with zoo.reshard(state, "
                "tx.init(params)), or pass the mesh that it was made with"
            )
    if owners is not None:
        tables = _owners.places(plan, owners.count)
        stacks = [s._replace(length=tables[s.group].size) for s in stacks]
    wanted = [(s.length, len(s.axes), s.order) for s in stacks]
    kept = [own.statistics.shape[:3] for own in found]
    if kept != wanted:
        raise ValueError(
            f"blocks={blocks!r} makes factors (blocks, factors of each, order) {wanted}, and the "
            f"{kind.__name__} has {kept}; {_states.REMEDY}"
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
