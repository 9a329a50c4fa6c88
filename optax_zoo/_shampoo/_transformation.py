"""Shampoo: Kronecker-factored preconditioning with roots computed beside the training."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _blocks, _checks, _grafting, _layers, _moments, _owners, _routes, _states
from optax_zoo._shampoo import _direction, _drift, _options, _statistics
from optax_zoo._shampoo._refresh import Refresher
from optax_zoo._shampoo._roots import Roots, RootsRenewal
from optax_zoo._shampoo._schedule import Refresh, Schedule


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`.

    Attributes:
      count: Updates so far, int32; taken back by whole intervals before it overflows.
      mu: First moment of the gradients, like the parameters; None for `b1=0`.
      graft: Second moment for Adam's norm, like the parameters; the state of another
        `graft_to`; or None.
      factors: Statistics, snapshots and roots, one entry for each stack of equal factors.
      parameters: Their names and shapes, see `_states.described`.
      report: Residual, age, iterations, condition, failures and skipped gradients, an array each
        with one entry per leaf in tree order; `inspect` reads them.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> state = zoo.scale_by_shampoo().init({"w": jnp.ones((4, 2)), "b": jnp.ones(2)})
      >>> print(state.report.age)  # b, then w: no roots yet
      [-1 -1]
    """

    count: jax.Array
    mu: Any
    graft: Any
    factors: Any
    parameters: Any
    report: _direction.LayerReport


def scale_by_shampoo(
    *,
    b1: Any = 0.9,
    b2: Any = 0.95,
    nesterov: bool = True,
    eps: Any = 1e-8,
    exponent: int | None = None,
    init_epsilon: Any = 0.0,
    graft_to: Any = None,
    layer_axes: _layers.LayerAxes = None,
    blocks: _blocks.Blocks = _blocks.Blocks(),  # noqa: B008
    refresh: Refresh = Refresh(),  # noqa: B008
    roots: Roots = Roots(),  # noqa: B008
    mesh: Any = None,
    mesh_axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Preconditions each block of the momentum with inverse roots of its Kronecker factors.

    For a block :math:`G` of order :math:`k`, with its unfolding :math:`G_{(i)}` along axis
    :math:`i`, and :math:`M` the momentum of `optax.scale_by_adam`,

    .. math::

      L_i &\leftarrow \beta_2 L_i + (1 - \beta_2)\, G_{(i)} G_{(i)}^\top \\
      D &= M \times_1 (\hat L_1 + \rho\,\lambda_{\max} I)^{-1/p} \times_2 \dots
        \times_k (\hat L_k + \rho\,\lambda_{\max} I)^{-1/p}

    with bias-corrected :math:`\hat L` (:math:`\beta_2 = 1`: a plain sum), the ridge
    :math:`\rho` relative to the largest eigenvalue, so that scaling the gradients changes no
    direction. The roots are computed in float64 on the host, beside the training, on the schedule
    of :class:`Refresh`: begun from a snapshot that the state carries, and used from a fixed later
    step on, whenever the host was done. So the trajectory is a pure function of the inputs,
    continued to the bit by a checkpoint taken while roots are in flight.

    "The grafted update alone" (with `graft_to=None`: :math:`M`) is taken for vectors and scalars,
    for what `blocks` leaves out, and by a layer until its first root is adopted. A root that
    cannot be certified by its residual is tried with the other method, then with more ridge;
    failing that the last good root stays, counted in :func:`inspect`. A block whose gradient, or
    its square, is not finite counts as zero in this step.

    Derivatives through `update` take roots as constants. They are exact over steps in which no root
    is adopted that was begun among them, nor corrected by `refresh.drift_every`. Over others they
    miss how roots depend on gradients and may have the wrong sign. To learn through longer training
    take differences of whole runs, as :func:`zeroth_order_grad` does, or an inner optimizer without
    roots.

    With a `mesh` its devices divide the work: each owns the same number of blocks of every shape,
    their statistics and roots, and each process computes the roots of its own, Σn³ spread evenly.
    Gradients and momenta reach the owners, and directions come back, in one `all_to_all` for each
    shape of piece, as far as JAX knows how leaves are sharded (`AxisType.Explicit`); with
    `AxisType.Auto` sharded leaves are gathered whole. Call `init` outside `jit`, with the
    parameters on the mesh. :func:`reshard` moves a state to another mesh.

    Args:
      b1: Decay of the momentum, in [0, 1). The number 0 keeps no momentum: :math:`M` is the
        gradient.
      b2: Decay of the statistics, and of Adam's norm, in [0, 1]. The number 1 sums them.
      nesterov: Whether the momentum looks one step ahead.
      eps: Added to the root of the second moment in Adam's norm.
      exponent: :math:`p`; None: the paper's, twice the number of axes that have a factor.
      init_epsilon: :math:`\varepsilon I` starts the statistics; the 2018 paper has 1e-4.
      graft_to: Whose norm each layer's direction takes: "adam" (`optax.scale_by_adam` with `b1`,
        `b2`, `eps`, `nesterov`; it shares the momentum), a transformation that runs on the
        gradients (`optax.identity()`: their own norm), or None.
      layer_axes: How many leading axes of a leaf count independent layers, each with factors and
        a norm of its own: an int, a prefix pytree of ints or a callable `(path, leaf) -> int`.
        With `optax.inject_hyperparams`, callables, transformations, `exponent` and `mesh` belong
        into its `static_args`.
      blocks: How parameters are cut, see :class:`Blocks`.
      refresh: When roots are renewed, see :class:`Refresh` and :func:`plan_refresh`.
      roots: How they are computed, see :class:`Roots`.
      mesh: The `jax.sharding.Mesh` whose devices divide statistics, roots and their computation.
        None: every device that a program runs on has all of them.
      mesh_axes: The mesh axes along which they are divided, a name or several; None: all.

    Returns:
      A gradient transformation that gives a direction, to be scaled by the learning rate.
      Updates keep their dtype; moments and statistics are float32 or wider. The state holds
      16 bytes per float32 parameter in square blocks, 4 more with Adam's norm. On an accelerator
      `Roots(on="host")` needs JAX's CPU backend. `optax.MultiSteps` begins roots at every
      mini-step. JAX's persistent compilation cache keeps programs with callbacks from JAX 0.11 on.

    Raises:
      ValueError: If an argument is out of range, `mesh_axes` are not the mesh's, its devices
        cannot call the host or, at `init`, `layer_axes` does not fit, parameters lie on other
        devices than the mesh or there is no CPU backend.
      TypeError: If an argument has the wrong type, or a parameter is complex or not
        floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_shampoo(refresh=zoo.Refresh(every=1, delay=0), nesterov=False)
      >>> gradients = {"w": jnp.diag(jnp.array([4.0, 1.0]))}
      >>> updates, state = tx.update(gradients, tx.init(gradients))
      >>> print(updates["w"].round(2) + 0.0)  # both directions at the same step
      [[1. 0.]
       [0. 1.]]

    References:
      Gupta, Koren and Singer, `Shampoo: Preconditioned Stochastic Tensor Optimization
      <https://arxiv.org/abs/1802.09568>`_, 2018; Anil et al., `Scalable Second Order Optimization
      for Deep Learning <https://arxiv.org/abs/2002.09018>`_, 2020.
    """
    _options.check_shampoo(b1, b2, eps, exponent, init_epsilon, graft_to)
    _options.check_options(nesterov, blocks, refresh, roots)
    owners = _options.owners(mesh, mesh_axes, roots)
    _layers.check_layer_axes(layer_axes)
    schedule = Schedule(refresh, on_host=roots.on == "host")
    has_momentum = not _checks.is_zero(b1)
    drifts = refresh.drift_every is not None
    decay = b2 if isinstance(b2, jax.Array) or b2 != 1 else None  # None: a sum
    other = graft_to not in (None, "adam") and optax.with_extra_args_support(graft_to)

    def cut(leaves, axes):
        plan = _blocks.plan(leaves, axes, blocks)
        return plan, _statistics.stacks(plan, exponent)

    def facts(plan, stacks):
        return {
            **_options.layout(plan),
            "exponent": sorted({stack.exponent for stack in stacks}),
            "b2 == 1": decay is None,
        }

    def init(params):
        _checks.check_params(
            params,
            who="shampoo",
            complex_remedy="wrap it in optax.contrib.split_real_and_imaginary",
        )
        _options.check_callbacks(roots)
        _options.check_placement(params, owners)
        leaves = jax.tree.leaves(params)
        plan, stacks = cut(leaves, _layers.leading_axes(layer_axes, params))
        dtype = _moments.widest_dtype(leaves)

        def first(stacks, blocks, epsilon):
            report = _direction.first_report(len(leaves), drifts=drifts)
            factors = tuple(
                _statistics.init(s, epsilon, dtype, roots.dtype, blocks[s.group], drifts=drifts)
                for s in stacks
            )
            return factors, (jnp.zeros((), jnp.int32), report)

        factors, (count, report) = _owners.placed(first, plan, stacks, owners, init_epsilon)
        graft = _moments.zeros(params) if graft_to == "adam" else None
        return ShampooState(
            count=count,
            mu=_moments.zeros(params) if has_momentum else None,
            graft=other.init(params) if other else graft,
            # One leaf for a tree without leaves, by which `optax.tree.map_params` finds its way.
            factors=factors if leaves else jnp.zeros(()),
            parameters=_states.described(params, facts(plan, stacks)) if leaves else jnp.zeros(()),
            report=report,
        )

    def magnitudes(structure, leaves, gradients, momenta, state, step, params, extra_args):
        """The grafted update alone, and the graft's new state."""
        if graft_to is None:
            return momenta, None
        if not other:
            nu = structure.flatten_up_to(state.graft)
            sizes, nu = _direction.adam(momenta, gradients, nu, step, b2, eps)
            return sizes, structure.unflatten(nu)
        raw = [g.astype(jnp.result_type(u)) for g, u in zip(gradients, leaves, strict=True)]
        sizes, graft = other.update(structure.unflatten(raw), state.graft, params, **extra_args)
        return [_moments.widen(u) for u in structure.flatten_up_to(sizes)], graft

    def check_state(state, plan, stacks, updates, params):
        _options.check_state(
            state,
            ShampooState,
            "factors",
            plan,
            stacks,
            blocks,
            owners,
            updates,
            facts(plan, stacks),
        )
        options = {"mu": (f"b1={b1!r}", True)} if has_momentum else {}
        _states.check_state(state, ShampooState, updates, moments=("mu",), options=options)
        if graft_to == "adam":
            _states.check_moment('with graft_to="adam" ShampooState.graft', state.graft, updates)
        elif other:
            like = updates if params is None else params
            _states.check_foreign("the transformation in graft_to", state.graft, other.init, like)

    def update(updates, state, params=None, **extra_args):
        leaves, structure = jax.tree.flatten(updates)
        if not leaves:
            return updates, state
        axes = _layers.leading_axes(layer_axes, updates)
        plan, stacks = cut(leaves, axes)
        check_state(state, plan, stacks, updates, params)
        routes = _routes.routes(plan, leaves, owners)
        step = schedule.next_count(state.count)
        wide = [_moments.widen(u) for u in leaves]
        gradients, raw, finite, skipped = _direction.finite_blocks(plan, axes, wide, routes)
        momenta, mu = gradients, None
        if has_momentum:
            momenta, mu = _direction.momentum(
                gradients, structure.flatten_up_to(state.mu), step, b1, nesterov=nesterov
            )
            mu = structure.unflatten(mu)
        sizes, graft = magnitudes(
            structure, leaves, gradients, momenta, state, step, params, extra_args
        )
        factors, ways, norms, usable, report, nothing = _advanced(
            plan, stacks, refresh, roots, routes, step, state.factors, raw, finite, momenta, decay
        )

        if ways and graft_to is not None:
            # Adam's updates are near 1 in size, others' may be anything.
            size_of = _layers.safe_norms if other else _layers.squared_norms
            u_norms = [_blocks.everywhere(size_of(sizes[i], axes[i])).reshape(-1) for i in ways]
            u_norms = jnp.concatenate(u_norms)
            u_norms = u_norms if other else _moments.root(u_norms)
            d_inverses = jnp.where(usable, _grafting.inverse_norm(norms), 0)
        layers = plan.layers
        grafted = []
        for index, (u, magnitude) in enumerate(zip(leaves, sizes, strict=True)):
            direction = magnitude
            if index in ways:
                own = layers[index]
                layered = (*jnp.shape(u)[: axes[index]], *[1] * (jnp.ndim(u) - axes[index]))
                direction = _blocks.like(magnitude, ways[index])
                if graft_to is None:
                    direction = jnp.where(usable[own].reshape(layered), direction, magnitude)
                else:
                    direction = _grafting.with_norm_of(
                        magnitude,
                        direction,
                        u_norms[own].reshape(layered),
                        d_inverses[own].reshape(layered),
                    )
            grafted.append(direction.astype(jnp.result_type(u)))
        return structure.unflatten(grafted), ShampooState(
            count=step + nothing,
            mu=mu,
            graft=graft,
            factors=factors,
            parameters=state.parameters,
            report=report._replace(skipped=state.report.skipped + skipped),
        )

    return optax.GradientTransformationExtraArgs(init, update)


# Compiled as one outside `jit` too, where every step would compile each `cond` anew.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _advanced(
    plan: _blocks.Plan,
    stacks: tuple[_statistics.Stack, ...],
    refresh: Refresh,
    roots: Roots,
    routes: _routes.Routes | None,
    step: jax.Array,
    factors: tuple[_statistics.Factors, ...],
    gradients: Sequence[jax.Array],
    finite: Sequence[jax.Array],
    momenta: Sequence[jax.Array],
    b2: Any,
) -> tuple[Any, ...]:
    """The factors after this step; of each leaf its direction, of each layer slice the norm and
    whether it has a root; the report; a zero.

    On the zero something in the result must depend, see `Refresher.begin`.
    """
    # A state that had drift correction keeps its arrays.
    drifts = refresh.drift_every is not None or any(f.corrected is not None for f in factors)
    if not plan.groups:
        report = _direction.report(plan, (), (), drifts=drifts)
        if routes is not None:
            everywhere = jax.sharding.PartitionSpec()
            report = jax.tree.map(lambda x: routes.owners.spread(x, everywhere), report)
        return factors, {}, None, None, report, 0
    if routes is None:
        blocks = [_blocks.gather(plan, group, momenta) for group in plan.groups]
        factors, directions, norms, usable, nothing = _advanced_blocks(
            stacks, refresh, roots, 1, step, factors, gradients, finite, blocks, b2
        )
        report = _direction.report(plan, stacks, factors, drifts=drifts)
        ways = _blocks.scatter(plan, directions)
    else:
        owners, own_stacks = routes.owners, routes.own_stacks(stacks)

        def on_each(factors, gradients, finite, tiles, step, b2):
            factors, directions, norms, usable, nothing = _advanced_blocks(
                own_stacks,
                refresh,
                roots,
                owners.in_process,
                step,
                factors,
                gradients,
                finite,
                routes.to_owners(tiles),
                b2,
            )
            report = _direction.report(plan, own_stacks, factors, drifts=drifts, routes=routes)
            report = _direction.joint_report(report, owners.axes)
            parts = factors, norms, usable, nothing[None]
            return parts, routes.from_owners(directions), report

        divided, everywhere = owners.spec, jax.sharding.PartitionSpec()
        parts, ways, report = owners.over(
            on_each,
            (divided, divided, divided, routes.specs, everywhere, everywhere),
            (divided, routes.specs, everywhere),
        )(factors, gradients, finite, routes.spread(momenta), step, b2)
        factors, norms, usable, nothing = parts
        ways = routes.back(ways)
        norms, usable = routes.in_order(norms), routes.in_order(usable)
        nothing = owners.spread(nothing, everywhere).sum()
    layer = plan.layer_of_block
    norms = _layers.joined_norms(jnp.concatenate(norms), layer)
    usable = jnp.zeros(int(layer.max()) + 1, bool).at[layer].max(jnp.concatenate(usable))
    return factors, ways, norms, usable, report, nothing


def _advanced_blocks(
    stacks: Sequence[_statistics.Stack],
    refresh: Refresh,
    roots: Roots,
    sharers: int,
    step: jax.Array,
    factors: tuple[_statistics.Factors, ...],
    gradients: Sequence[jax.Array],
    finite: Sequence[jax.Array],
    momenta: Sequence[jax.Array],
    b2: Any,
) -> tuple[Any, ...]:
    """The same for stacks of blocks: the factors; direction, norm and having a root of each block
    of each group; a zero."""
    schedule = Schedule(refresh, on_host=roots.on == "host")
    drifts = refresh.drift_every is not None
    factors = tuple(
        _statistics.taken_over(s, f, roots.dtype, drifts=drifts)
        for s, f in zip(stacks, factors, strict=True)
    )
    dtypes = tuple(str(f.roots.dtype) for f in factors)
    halved = any(f.corrected is not None for f in factors)
    renewal = RootsRenewal(stacks, roots, dtypes, halved=halved)
    refresher = Refresher(renewal, schedule, on_host=roots.on == "host", sharers=sharers)
    factors = tuple(map(_statistics.older, factors))
    factors = refresher.adopt_due(step, factors)  # what is begun below is due later
    factors = _statistics.gather(stacks, factors, gradients, finite, b2, schedule.gathers(step))
    factors, nothing = refresher.begin(step, factors)
    if drifts:
        factors = _drift.corrected_if(schedule.corrects(step), stacks, factors, roots.ridge)
    elif halved:
        factors = _drift.uncorrected_if(schedule.renews(step), stacks, factors)
    found = []
    for index, blocks in enumerate(momenta):
        parts = [(s, f) for s, f in zip(stacks, factors, strict=True) if s.group == index]
        found.append(_statistics.precondition(parts, blocks))
    return factors, *zip(*found, strict=True), nothing
