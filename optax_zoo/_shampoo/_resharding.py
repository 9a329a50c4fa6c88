"""From one mesh to another: the same state with its blocks on other devices."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optax_zoo import _triangles
from optax_zoo._shampoo._bases import Bases, Moments
from optax_zoo._shampoo._statistics import Factors

_DIVIDED = (Factors, Bases, Moments)
_IN_PAIRS = ("roots", "corrected")  # of `Factors`: two matrices in one, device by device


def reshard(opt_state: Any, like: Any) -> Any:
    """Moves the state of an optimizer to the devices of another one's, block by block.

    The state of :func:`shampoo` and :func:`soap` with a `mesh` is divided among its devices, so
    arrays have other shapes on another number of devices, or without a mesh. This takes each block
    to its new owner, a refresh in flight included, and everything else to its new devices; what
    follows is what the devices before would have done. A checkpoint is restored as it was saved,
    into the shapes that the mesh of then gives, which an abstract mesh does as well::

      was = zoo.shampoo(1e-3, mesh=jax.sharding.AbstractMesh((4,), ("data",)))
      saved = checkpointer.restore(path, jax.eval_shape(was.init, params))
      state = zoo.reshard(saved, tx.init(params))

    Args:
      opt_state: A state, also one inside those of `optax.chain`, `optax.masked` and others, not
        that of an `nnx.Optimizer`; arrays may be NumPy's.
      like: A state of the same optimizer for the same parameters, where it is to go: `tx.init`.

    Returns:
      The values of `opt_state`, laid out as `like`. Arrays that are in place already are shared
      with it. On the way a stack may be whole on every device.

    Raises:
      ValueError: If structures, or shapes and dtypes but for the number of places, differ.
      TypeError: If `like` holds shapes in place of arrays.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_zoo as zoo
      >>> params = {"w": jnp.ones((8, 4))}
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> before, after = zoo.shampoo(1e-3), zoo.shampoo(1e-3, mesh=mesh)
      >>> _, state = before.update(params, before.init(params))
      >>> state = zoo.reshard(state, after.init(params))
      >>> print(state[0].count, state[0].factors[0].blocks)
      1 [[0]]

    References:
      `Distributed arrays and automatic parallelization
      <https://docs.jax.dev/en/latest/notebooks/Distributed_arrays_and_automatic_parallelization.html>`_.
    """

    def is_divided(x):
        return isinstance(x, _DIVIDED)

    for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]:
        if not isinstance(leaf, jax.Array):
            raise TypeError(
                f"like must be a state of arrays, got {leaf!r} at {jax.tree_util.keystr(path)}; "
                "pass what `init` gives, not jax.eval_shape of it"
            )
    places, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_divided)
    found = jax.tree.structure(opt_state, is_leaf=is_divided)
    if found != structure:
        raise ValueError(
            f"opt_state must have the structure of like, got {found} in place of {structure}; "
            "pass as like what `init` of the same optimizer gives"
        )
    values = jax.tree.leaves(opt_state, is_leaf=is_divided)
    moved = [
        (_moved if is_divided(new) else _put)(jax.tree_util.keystr(path), old, new)
        for (path, new), old in zip(places, values, strict=True)
    ]
    return structure.unflatten(moved)


def _put(name: str, old: Any, new: Any) -> Any:
    if (was := _kind(old)) != (wanted := _kind(new)):
        raise ValueError(
            f"opt_state has {was} at {name}, like has {wanted}; pass as like what `init` gives for "
            "the same parameters and options"
        )
    return _at(old, new)


def _kind(x: Any) -> tuple[tuple[int, ...], str]:
    return np.shape(x), str(jnp.result_type(x))


def _at(old: Any, new: jax.Array) -> jax.Array:
    """`old` where `new` is, and as free to go elsewhere, as counts of Optax's are."""
    if not new.committed:
        old = np.asarray(old) if not jnp.issubdtype(new.dtype, jax.dtypes.extended) else old
        return jnp.array(old)
    return jax.device_put(old, new.sharding)


def _moved(name: str, old: Any, new: Any) -> Any:
    """The blocks of one stack at their new places."""
    unnamed = jax.tree.map(lambda x: _unnamed(x.sharding), new)
    sharding = jax.tree.leaves(unnamed)[0]
    source, numbers = _numbers(old, sharding), _numbers(new, sharding)
    if (was := _described(old, source)) != (wanted := _described(new, numbers)):
        raise ValueError(
            f"opt_state has blocks of {was} at {name}, like has {wanted}; pass as like what "
            "`init` gives for the same parameters and options"
        )
    old = jax.tree.map(lambda x: jax.device_put(x, _on_the_way(x, sharding)), old)
    with _context(sharding):
        taken = jax.jit(_taken, out_shardings=unnamed)
        found = taken(old, jax.device_put(new, unnamed), source, numbers)
    return jax.tree.map(_at, found, new)


def _context(sharding: Any) -> Any:
    """Of a program that leaves shardings to XLA, whatever the caller's is."""
    if isinstance(sharding, NamedSharding) and hasattr(jax, "set_mesh"):
        assert isinstance(sharding.mesh, jax.sharding.Mesh)
        return jax.set_mesh(sharding.mesh)
    return contextlib.nullcontext()


def _on_the_way(x: Any, sharding: Any) -> Any:
    """Where an array waits among the new devices: divided along any axis but the blocks'."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    mesh = sharding.mesh
    for axis, length in enumerate(np.shape(x)):
        if axis and length % mesh.size == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))
    return NamedSharding(mesh, PartitionSpec())


def _unnamed(sharding: Any) -> Any:
    """The same for programs that leave shardings to XLA."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    mesh = sharding.mesh
    assert isinstance(mesh, jax.sharding.Mesh)
    auto = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return NamedSharding(
        jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=auto), sharding.spec
    )


def _described(state: Any, numbers: np.ndarray) -> Any:
    """What two states have in common: number of blocks, shapes but for them, dtypes."""
    shapes = {
        field: (x.shape[1:], str(x.dtype))
        for field, x in state._asdict().items()
        if field != "blocks" and x is not None
    }
    return int((numbers >= 0).sum()), shapes


def _numbers(state: Any, sharding: Any) -> np.ndarray:
    """Which block is at each place, one device's after the other's; −1: none."""
    if state.blocks is None:
        return np.arange(len(state.nu if isinstance(state, Moments) else state.weight))
    if isinstance(sharding, NamedSharding):  # everywhere, or a process might not have all
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return np.asarray(jax.device_put(state.blocks, sharding)).reshape(-1)


def _taken(old: Any, new: Any, source: jax.Array, numbers: jax.Array) -> Any:
    places = jnp.arange(len(source), dtype=jnp.int32)
    nowhere = len(source)  # past the end, so dropped
    place = jnp.zeros(len(source), jnp.int32).at[jnp.where(source < 0, nowhere, source)].set(places)
    place = place[jnp.maximum(numbers, 0)]

    def taken(x, y):
        there = (numbers >= 0).reshape(-1, *[1] * (y.ndim - 1))
        return jnp.where(there, x[place], y)

    fields = {}
    for field, y in new._asdict().items():
        x = getattr(old, field)
        if field == "blocks" or y is None:
            fields[field] = y
        elif field in _IN_PAIRS:
            fields[field] = _paired(new, taken(_unpaired(old, x), _unpaired(new, y)))
        else:
            fields[field] = taken(x, y)
    return new._replace(**fields)


def _devices(state: Any) -> int:
    return 1 if state.blocks is None else len(state.blocks)


def _unpaired(state: Factors, packed: jax.Array) -> jax.Array:
    """(devices · pairs, n, n + 1) -> (places, f, n, n)."""
    n, devices = packed.shape[1], _devices(state)
    count = state.age.size // devices

    def unpaired(packed):
        return _triangles.unpack_pairs(packed, count)

    matrices = jax.vmap(unpaired)(packed.reshape(devices, -1, n, n + 1))
    return matrices.reshape(*state.age.shape, n, n)


def _paired(state: Factors, matrices: jax.Array) -> jax.Array:
    """The inverse of `_unpaired`."""
    n = matrices.shape[-1]
    matrices = matrices.reshape(_devices(state), -1, n, n)
    return jax.vmap(_triangles.pack_pairs)(matrices).reshape(-1, n, n + 1)
