"""SOAP: Adam in the eigenbases of Shampoo's statistics, computed beside the training."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _blocks, _checks, _layers, _links, _moments, _owners, _routes, _states
from optax_zoo._shampoo import _bases, _direction, _options, _statistics
from optax_zoo._shampoo._refresh import Refresher
from optax_zoo._shampoo._roots import Roots
from optax_zoo._shampoo._schedule import Refresh, Schedule


class SoapState(NamedTuple):
    """State of `scale_by_soap`.

    Attributes:
      count: Updates so far, int32; taken back by whole intervals before it overflows.
      mu: First moments of the leaves that are not preconditioned, in tree order; None for `b1=0`.
      nu: Their second moments.
      bases: Statistics, snapshots and eigenbases, one entry for each stack of equal factors.
      moments: Both moments of the blocks in their bases, one entry for each kind of block.
      parameters: Their names and shapes, see `_states.described`.
      report: Residual, age, iterations, condition, failures and skipped gradients, an array each
        with one entry per leaf in tree order; `inspect` reads them.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> state = zoo.scale_by_soap().init({"w": jnp.ones((4, 2)), "b": jnp.ones(2)})
      >>> print(state.nu)  # of b; w has its moments in the bases
      (Array([0., 0.], dtype=float32),)
    """

    count: jax.Array
    mu: Any
    nu: Any
    bases: Any
    moments: Any
    parameters: Any
    report: _direction.LayerReport


def scale_by_soap(
    *,
    b1: Any = 0.95,
    b2: Any = 0.95,
    nesterov: bool = False,
    eps: Any = 1e-8,
    layer_axes: _layers.LayerAxes = None,
    blocks: _blocks.Blocks = _blocks.Blocks(),  # noqa: B008
    refresh: Refresh = Refresh(),  # noqa: B008
    roots: Roots = Roots(method="eigh"),  # noqa: B008
    mesh: Any = None,
    mesh_axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs Adam in the eigenbases of each block's Kronecker factors.

    For a block :math:`G` of order :math:`k`, with its unfolding :math:`G_{(i)}` along axis
    :math:`i`, and the eigenvectors :math:`Q_i` of an earlier :math:`L_i` as columns,

    .. math::

      L_i &\leftarrow \beta_2 L_i + (1 - \beta_2)\, G_{(i)} G_{(i)}^\top \\
      G' &= G \times_1 Q_1^\top \times_2 \dots \times_k Q_k^\top \\
      M &\leftarrow \beta_1 M + (1 - \beta_1)\, G', \qquad
        V \leftarrow \beta_2 V + (1 - \beta_2)\, G'^{\,2} \\
      D &= \frac{\hat M}{\sqrt{\hat V} + \epsilon} \times_1 Q_1 \times_2 \dots \times_k Q_k

    with bias-corrected :math:`\hat M` and :math:`\hat V`, as in `optax.scale_by_adam`. The bases
    are found in float64 on the host, beside the training, on the schedule of :class:`Refresh`:
    begun from a snapshot that the state carries, and used from a fixed later step on, whenever the
    host was done. So the trajectory is a pure function of the inputs, continued to the bit by a
    checkpoint taken while bases are computed. Until the first of them :math:`Q_i = I`, as always
    along an axis without a factor: the first steps are Adam's.

    Both moments live in the bases. When new ones come, :math:`T_i = Q_{i,\text{new}}^\top
    Q_{i,\text{old}}` turns the first moment exactly; the second is averaged by the squared entries
    of :math:`T_i`, as if coordinates were uncorrelated. (The authors' code leaves it as it is.)

    Vectors, scalars and what `blocks` leaves out take Adam's update. A basis is certified by its
    residual; where there is none, the last one stays, counted in :func:`inspect`. A block whose
    gradient, or its square, is not finite counts as zero in this step.

    Where statistics have not their full rank yet, rounding decides eigenvectors, and with them
    steps: two programs of the same mathematics part there. Of a first step in the bases of its own
    gradient (`Refresh(start=1, delay=0)`) it decides most, so let the learning rate rise from zero.

    Derivatives through `update` take bases as constants, with the consequences that
    :func:`scale_by_shampoo` has: they are exact over steps in which no basis is adopted that was
    begun among them, and may have the wrong sign over others. There coordinates that are 0 but for
    rounding would have a slope of 1/ε; those whose root of :math:`V` is below
    :math:`\text{eps}^{3/4}` of their block's largest count as constants.

    With a `mesh` its devices divide the work, moments included, as those of
    :func:`scale_by_shampoo`.

    Args:
      b1: Decay of the first moment, in [0, 1). The number 0 keeps none.
      b2: Decay of the second moment and of the statistics, in [0, 1).
      nesterov: Whether the first moment looks one step ahead.
      eps: Added to the root of the second moment.
      layer_axes: How many leading axes of a leaf count independent layers, each with bases of its
        own: an int, a prefix pytree of ints or a callable `(path, leaf) -> int` (in
        `static_args` of `optax.inject_hyperparams`).
      blocks: How parameters are cut, see :class:`Blocks`.
      refresh: When bases are renewed, see :class:`Refresh` and :func:`plan_refresh`, which times
        them well enough with `roots=Roots(method="eigh")`. `drift_every` must be None.
      roots: Where bases are computed and what they are kept in, see :class:`Roots`. `method` must
        be "eigh"; `ridge` is not used.
      mesh: The `jax.sharding.Mesh` whose devices divide statistics, bases, moments and the bases'
        computation (in `static_args` of `optax.inject_hyperparams`). None: every device that a
        program runs on has all of them.
      mesh_axes: The mesh axes along which they are divided, a name or several; None: all.

    Returns:
      A gradient transformation that gives a direction, to be scaled by the learning rate.
      Updates keep their dtype; moments and statistics are float32 or wider. The state holds
      24 bytes per float32 parameter in square blocks: 4 for each moment, 8 for statistics and
      snapshots, 8 for the bases. On an accelerator `Roots(on="host")` needs JAX's CPU backend.
      `optax.MultiSteps` begins bases at every mini-step. JAX's persistent compilation cache
      keeps programs with callbacks from JAX 0.11 on.

    Raises:
      ValueError: If an argument is out of range, `mesh_axes` are not the mesh's, its devices
        cannot call the host or, at `init`, `layer_axes` does not fit, parameters lie on other
        devices than the mesh or there is no CPU backend.
      TypeError: If an argument has the wrong type, or a parameter is complex or not
        floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_soap(eps=1e-3, refresh=zoo.Refresh(every=1, delay=0))
      >>> gradients = {"w": jnp.array([[2.0, 1.0], [1.0, 2.0]])}  # eigenvalues 3 and 1
      >>> updates, state = tx.update(gradients, tx.init(gradients))
      >>> print(updates["w"].round(2) + 0.0)  # both directions at the same step
      [[1. 0.]
       [0. 1.]]

    References:
      Vyas et al., `SOAP: Improving and Stabilizing Shampoo using Adam
      <https://arxiv.org/abs/2409.11321>`_, 2024.
    """
    _check_numbers(b1, b2, eps)
    _options.check_options(nesterov, blocks, refresh, roots)
    _check_groups(refresh, roots)
    owners = _options.owners(mesh, mesh_axes, roots)
    _layers.check_layer_axes(layer_axes)
    schedule = Schedule(refresh, on_host=roots.on == "host")
    has_momentum = not _checks.is_zero(b1)

    def cut(leaves, axes):
        plan = _blocks.plan(leaves, axes, blocks)
        return plan, _statistics.stacks(plan, exponent=None)

    def init(params):
        _checks.check_params(
            params,
            who="soap",
            complex_remedy="wrap it in optax.contrib.split_real_and_imaginary",
        )
        _options.check_callbacks(roots)
        _options.check_placement(params, owners)
        leaves = jax.tree.leaves(params)
        plan, stacks = cut(leaves, _layers.leading_axes(layer_axes, params))
        dtype = _moments.widest_dtype(leaves)

        def first(stacks, blocks, _):
            lengths = {s.group: s.length for s in stacks}
            moments = [
                _bases.first_moments((lengths[i], *g.sizes), dtype, own, has_mu=has_momentum)
                for i, (g, own) in enumerate(zip(plan.groups, blocks, strict=True))
            ]
            bases = tuple(_bases.init(s, dtype, roots.dtype, blocks[s.group]) for s in stacks)
            same = jnp.zeros((), jnp.int32), _direction.first_report(len(leaves))
            return _bases.States(bases, tuple(moments)), same

        states, (count, report) = _owners.placed(first, plan, stacks, owners, 0.0)
        return SoapState(
            count=count,
            mu=_plain_zeros(plan, leaves) if has_momentum else None,
            nu=_plain_zeros(plan, leaves),
            # One leaf for a tree without leaves, by which `optax.tree.map_params` finds its way.
            bases=states.bases if leaves else jnp.zeros(()),
            moments=states.moments if leaves else jnp.zeros(()),
            parameters=_states.described(params, _options.layout(plan))
            if leaves
            else jnp.zeros(()),
            report=report,
        )

    def adam(gradients, mu, nu, step):
        """`optax.scale_by_adam`'s updates and both new moments, of lists of arrays."""
        momenta = gradients
        if has_momentum:
            momenta, mu = _direction.momentum(gradients, mu, step, b1, nesterov=nesterov)
        found, nu = _direction.adam(momenta, gradients, nu, step, b2, eps)
        return found, mu, nu

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        leaves, structure = jax.tree.flatten(updates)
        if not leaves:
            return updates, state
        axes = _layers.leading_axes(layer_axes, updates)
        plan, stacks = cut(leaves, axes)
        facts = _options.layout(plan)
        _options.check_state(
            state, SoapState, "bases", plan, stacks, blocks, owners, updates, facts
        )
        options = {"mu": (f"b1={b1!r}", True)} if has_momentum else {}
        _states.check_state(state, SoapState, updates, options=options)
        mu, nu = state.mu, state.nu
        routes = _routes.routes(plan, leaves, owners)
        step = schedule.next_count(state.count)
        wide = [_moments.widen(u) for u in leaves]
        raw, finite, _, masks, _, skipped = _direction.finite_parts(plan, axes, wide, routes)
        moments = state.moments
        if not has_momentum:
            moments = tuple(own._replace(mu=None) for own in moments)
        states = _bases.States(state.bases, moments)
        states, rotated, report, nothing = _advanced(
            plan, stacks, refresh, roots, routes, step, states, raw, finite, b2
        )

        plain = [jnp.where(mask, wide[i], 0) for i, mask in masks.items()]
        found, mu, nu = adam(plain, mu, nu, step)
        mus, nus = [own.mu for own in states.moments], [own.nu for own in states.moments]
        turned, mus, nus = adam(rotated, mus, nus, step)
        turned = list(map(_bases.without_noise_derivatives, turned, nus))
        directions = _turned_back(plan, stacks, routes, states.bases, turned)
        directions |= dict(zip(masks, found, strict=True))
        shaped = [
            _blocks.like(x, directions[i]).astype(jnp.result_type(u))
            for i, (u, x) in enumerate(zip(leaves, wide, strict=True))
        ]
        return structure.unflatten(shaped), SoapState(
            count=step + nothing,
            mu=tuple(mu) if has_momentum else None,
            nu=tuple(nu),
            bases=states.bases,
            moments=tuple(
                own._replace(mu=mu, nu=nu)
                for own, mu, nu in zip(states.moments, mus, nus, strict=True)
            ),
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
    states: _bases.States,
    gradients: Sequence[jax.Array],
    finite: Sequence[jax.Array],
    b2: Any,
) -> tuple[_bases.States, list[jax.Array], _direction.LayerReport, jax.Array]:
    """Bases and moments before this step's gradients, those in their bases, report and a zero.

    On the zero something in the result must depend, see `Refresher.begin`.
    """
    sharers = 1 if routes is None else routes.owners.in_process
    on_host = roots.on == "host"

    def advanced(stacks, states, gradients, finite, step, b2):
        schedule = Schedule(refresh, on_host=on_host)
        bases = tuple(_bases.taken_over(own, roots.dtype) for own in states.bases)
        renewal = _bases.BasesRenewal(stacks, tuple(str(own.bases.dtype) for own in bases))
        refresher = Refresher(renewal, schedule, on_host=on_host, sharers=sharers)
        states = states._replace(bases=tuple(map(_statistics.older, bases)))
        states = refresher.adopt_due(step, states)  # what is begun below is due later
        gathers = schedule.gathers(step)
        bases = _statistics.gather(stacks, states.bases, gradients, finite, b2, gathers)
        states, nothing = refresher.begin(step, states._replace(bases=bases))
        rotated = []
        for parts, blocks, ok in zip(
            _by_group(plan, stacks, states.bases), gradients, finite, strict=True
        ):
            ok = ok.reshape(-1, *[1] * (blocks.ndim - 1))
            rotated.append(_bases.into(parts, jnp.where(ok, blocks, 0)))
        report = _direction.report(plan, stacks, states.bases, routes=routes)
        return states, rotated, report, nothing

    if routes is None:
        return advanced(stacks, states, gradients, finite, step, b2)
    own_stacks, axes = routes.own_stacks(stacks), routes.owners.axes

    def on_each(*arguments):
        states, rotated, report, nothing = advanced(own_stacks, *arguments)
        return (states, rotated, nothing[None]), _direction.joint_report(report, axes)

    divided, everywhere = routes.owners.spec, jax.sharding.PartitionSpec()
    parts, report = routes.owners.over(
        on_each, (*[divided] * 3, everywhere, everywhere), (divided, everywhere)
    )(states, gradients, finite, step, b2)
    states, rotated, nothing = parts
    return states, rotated, report, routes.owners.spread(nothing, everywhere).sum()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _turned_back(
    plan: _blocks.Plan,
    stacks: tuple[_statistics.Stack, ...],
    routes: _routes.Routes | None,
    bases: tuple[_bases.Bases, ...],
    turned: Sequence[jax.Array],
) -> dict[int, jax.Array]:
    """Each preconditioned leaf's direction from those of its blocks in their bases."""

    def turned_back(stacks, bases, turned):
        parts = _by_group(plan, stacks, bases)
        return [_bases.back(*own) for own in zip(parts, turned, strict=True)]

    if routes is None or not plan.groups:
        return _blocks.scatter(plan, turned_back(stacks, bases, turned))
    own_stacks, divided = routes.own_stacks(stacks), routes.owners.spec

    def on_each(bases, turned):
        return routes.from_owners(turned_back(own_stacks, bases, turned))

    return routes.back(routes.owners.over(on_each, divided, routes.specs)(bases, turned))


def _by_group(
    plan: _blocks.Plan, stacks: Sequence[_statistics.Stack], bases: Sequence[_bases.Bases]
) -> list[list[tuple[_statistics.Stack, _bases.Bases]]]:
    """The stacks of factors that each group of blocks has."""
    pairs = list(zip(stacks, bases, strict=True))
    return [[pair for pair in pairs if pair[0].group == i] for i in range(len(plan.groups))]


def _plain_zeros(plan: _blocks.Plan, leaves: Sequence[Any]) -> Any:
    """A moment's start for the leaves that are not preconditioned.

    One leaf for a tree without leaves, as everything that is not like the parameters.
    """
    pairs = zip(leaves, plan.cores, strict=True)
    return (
        tuple(_moments.zeros(p) for p, core in pairs if core is None) if leaves else jnp.zeros(())
    )


def _check_numbers(b1: Any, b2: Any, eps: Any) -> None:
    _checks.check_decay_rate("b1", b1, 0.95)
    _checks.check_decay_rate("b2", b2, 0.95)
    _checks.check_number("eps", eps, at_least=_checks.LEAST_EPS, remedy="pass e.g. 1e-8")


def _check_groups(refresh: Refresh, roots: Roots) -> None:
    """Raises for what Shampoo has and SOAP has not."""
    if roots.method != "eigh":
        raise ValueError(
            f'roots.method must be "eigh", got {roots.method!r}, which finds no eigenvectors; pass '
            'roots=Roots(method="eigh")'
        )
    if refresh.drift_every is not None:
        raise ValueError(
            f"refresh.drift_every must be None, got {refresh.drift_every!r}: SOAP's second moment "
            "follows the gradients in every step; pass a smaller `every` instead"
        )


def soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    b1: Any = 0.95,
    b2: Any = 0.95,
    nesterov: bool = False,
    eps: Any = 1e-8,
    layer_axes: _layers.LayerAxes = None,
    blocks: _blocks.Blocks = _blocks.Blocks(),  # noqa: B008
    refresh: Refresh = Refresh(),  # noqa: B008
    roots: Roots = Roots(method="eigh"),  # noqa: B008
    mesh: Any = None,
    mesh_axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SOAP: Adam where Shampoo's statistics are diagonal.

    .. math:: \theta_t = \theta_{t-1} - \eta_t (D_t + \lambda \theta_{t-1})

    with the direction :math:`D` of :func:`scale_by_soap`. Start from the learning rate and the
    schedule of a tuned AdamW.

    Args:
      learning_rate: A number or a schedule.
      weight_decay: :math:`\lambda`, decoupled as in AdamW; a number or a schedule.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (in
        `static_args` of `optax.inject_hyperparams`).
      b1: Decay of the first moment.
      b2: Decay of the second moment and of the statistics.
      nesterov: Whether the first moment looks one step ahead.
      eps: Added to the root of the second moment.
      layer_axes: Leading axes that count layers, see :func:`scale_by_soap`.
      blocks: How parameters are cut.
      refresh: When bases are renewed.
      roots: Where they are computed; `method` must be "eigh".
      mesh: The mesh whose devices divide the work, see :func:`scale_by_soap`.
      mesh_axes: Along which of its axes.

    Returns:
      The chain of :func:`scale_by_soap`, decay and learning rate. `update` needs the parameters
      if there is a decay.

    Raises:
      ValueError: If an argument is out of range or, at `init`, does not fit the parameters.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.soap(3e-3, weight_decay=0.1, refresh=zoo.Refresh(every=50))
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(round(float(updates["kernel"][0, 0]), 4))
      -0.0033

    References:
      Vyas et al., `SOAP: Improving and Stabilizing Shampoo using Adam
      <https://arxiv.org/abs/2409.11321>`_, 2024.
    """
    return optax.chain(
        scale_by_soap(
            b1=b1,
            b2=b2,
            nesterov=nesterov,
            eps=eps,
            layer_axes=layer_axes,
            blocks=blocks,
            refresh=refresh,
            roots=roots,
            mesh=mesh,
            mesh_axes=mesh_axes,
        ),
        _links.decay_link(weight_decay, mask, who="soap"),
        _links.learning_rate_link(learning_rate, usual="3e-3"),
    )
