"""What is known of each optimizer: a literal table, which the tests hold against the code."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import optax

from optax_zoo._adabound import adabound, adaboundw, amsbound
from optax_zoo._adax import adax, adaxw
from optax_zoo._amos import amos
from optax_zoo._blocks import Blocks
from optax_zoo._exponentiated_gains import egdd
from optax_zoo._exponentiated_gradient import exponentiated_gradient
from optax_zoo._lamb import lamb
from optax_zoo._lars import lars
from optax_zoo._shampoo._assembled import shampoo
from optax_zoo._shampoo._roots import Roots
from optax_zoo._shampoo._schedule import Refresh
from optax_zoo._shampoo._soap import soap
from optax_zoo._sign_momentum import lion


class Recommendation(NamedTuple):
    """A range to search for an argument, and who recommends it.

    Attributes:
      low: The least value.
      high: The largest; equal to `low` where one value is recommended.
      times: What both are multiples of, e.g. "AdamW's"; None: nothing, they are the values.
      source: Where the range comes from.

    Examples:
      >>> import optax_zoo as zoo
      >>> zoo.info("lamb").weight_decay
      Recommendation(low=0.01, high=0.01, times=None, source='the paper, for BERT')
    """

    low: float
    high: float
    times: str | None
    source: str


class OptimizerInfo(NamedTuple):
    """What `info` knows of an optimizer.

    Attributes:
      factory: The optimizer itself, for what looks at signatures.
      description: What it does, in a line.
      paper: The title of the paper.
      arxiv: The paper's number on arXiv; None: it is not there.
      defaults: Every argument that has a default, with it.
      state_bytes: State in bytes per float32 parameter of large square matrices, at the defaults.
      needs_params: When `update` needs the parameters: "always", "never", or "with decay", that is
        unless `weight_decay` is the number 0.
      learning_rate: The rates to start from; None where no source has any.
      weight_decay: The decays to start from; None where no source has any, or there is no decay.
      tuned: Where the learning rates lay that `benchmarks.arena` found best, on the autoencoder
        and the language model; None: it was not in it.
      required: Arguments without a default other than the learning rate.

    Examples:
      >>> import optax_zoo as zoo
      >>> entry = zoo.info("adaxw")
      >>> entry.factory is zoo.adaxw, entry.needs_params, entry.state_bytes
      (True, 'with decay', 8)
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    description: str
    paper: str
    arxiv: str | None
    defaults: Mapping[str, Any]
    state_bytes: float
    needs_params: Literal["always", "with decay", "never"]
    learning_rate: Recommendation | None = None
    weight_decay: Recommendation | None = None
    tuned: Recommendation | None = None
    required: tuple[str, ...] = ()


def _values(**arguments: Any) -> Mapping[str, Any]:
    return MappingProxyType(arguments)


def _at(value: float, source: str, *, times: str | None = None) -> Recommendation:
    return Recommendation(value, value, times, source)


_ADAMW = "AdamW's"


def _in_arena(low: float, high: float) -> Recommendation:
    return Recommendation(low, high, _ADAMW, "benchmarks.arena, the best on its two networks")


_BOUND_PAPER = "Adaptive Gradient Methods with Dynamic Bound of Learning Rate"
_BOUND_CODE = "the authors' code, github.com/Luolc/AdaBound"
_BOUND_CIFAR = "the authors' CIFAR-10 example"
_BOUND_DEFAULTS = _values(
    learning_rate=1e-3,
    final_lr=0.1,
    base_lr=None,
    b1=0.9,
    b2=0.999,
    gamma=1e-3,
    eps=1e-8,
    weight_decay=0.0,
    mask=None,
    bounds=None,
)
_ADAX_PAPER = "AdaX: Adaptive Gradient Descent with Exponential Long Term Memory"
_ADAX_CODE = "the authors' code and its CIFAR-10 settings"
_ADAX_DEFAULTS = _values(b1=0.9, b2=1e-4, eps=1e-12, mu_dtype=None, mask=None)
_KRONECKER_DEFAULTS = _values(
    weight_decay=0.0,
    mask=None,
    eps=1e-8,
    layer_axes=None,
    blocks=Blocks(),
    refresh=Refresh(),
    mesh=None,
    mesh_axes=None,
)

TABLE: Mapping[str, OptimizerInfo] = _values(
    adabound=OptimizerInfo(
        factory=adabound,
        description="Adam's start and SGD's end, each coordinate's rate between closing bounds",
        paper=_BOUND_PAPER,
        arxiv="1902.09843",
        defaults=_BOUND_DEFAULTS,
        learning_rate=_at(1e-3, _BOUND_CODE),
        weight_decay=_at(5e-4, _BOUND_CIFAR),
        tuned=_in_arena(0.56, 1.0),
        state_bytes=8,
        needs_params="with decay",
    ),
    adaboundw=OptimizerInfo(
        factory=adaboundw,
        description="AdaBound with decoupled decay, which no learning rate multiplies",
        paper=_BOUND_PAPER,
        arxiv="1902.09843",
        defaults=_values(**_BOUND_DEFAULTS, amsbound=False),
        learning_rate=_at(1e-3, _BOUND_CODE),
        state_bytes=8,
        needs_params="with decay",
    ),
    adax=OptimizerInfo(
        factory=adax,
        description="momentum over the root of a second moment that forgets nothing; L2 decay",
        paper=_ADAX_PAPER,
        arxiv="2004.09740",
        defaults=_values(**_ADAX_DEFAULTS, learning_rate=1.5e-3, weight_decay=5e-4),
        learning_rate=_at(1.5e-3, _ADAX_CODE),
        weight_decay=_at(5e-4, _ADAX_CODE),
        state_bytes=8,
        needs_params="with decay",
    ),
    adaxw=OptimizerInfo(
        factory=adaxw,
        description="AdaX with decoupled decay",
        paper=_ADAX_PAPER,
        arxiv="2004.09740",
        defaults=_values(**_ADAX_DEFAULTS, learning_rate=5e-3, weight_decay=5e-2),
        learning_rate=_at(5e-3, _ADAX_CODE),
        weight_decay=_at(5e-2, _ADAX_CODE),
        tuned=_in_arena(0.56, 1.0),
        state_bytes=8,
        needs_params="with decay",
    ),
    amos=OptimizerInfo(
        factory=amos,
        description="Adam's direction, with rates and decay that follow each parameter's scale",
        paper="Amos: An Adam-style Optimizer with Adaptive Weight Decay towards Model-Oriented "
        "Scale",
        arxiv="2210.11693",
        required=("eta_fn",),
        defaults=_values(
            shape_fn=None,
            beta=0.999,
            extra_l2=0.0,
            c_coef=0.25,
            d_coef=0.25,
            momentum=None,
            clip_value=None,
        ),
        learning_rate=_at(
            1.0, "the paper", times="1/sqrt(N) for a data set of N independent batches"
        ),
        tuned=_in_arena(3.2, 5.6),
        state_bytes=8,
        needs_params="always",
    ),
    amsbound=OptimizerInfo(
        factory=amsbound,
        description="AdaBound on the running maximum of the second moment",
        paper=_BOUND_PAPER,
        arxiv="1902.09843",
        defaults=_BOUND_DEFAULTS,
        learning_rate=_at(1e-3, _BOUND_CODE),
        weight_decay=_at(5e-4, _BOUND_CIFAR),
        tuned=_in_arena(0.56, 1.78),
        state_bytes=12,
        needs_params="with decay",
    ),
    egdd=OptimizerInfo(
        factory=egdd,
        description="momentum SGD whose step sizes adapt, per coordinate and per layer",
        paper="Step-size Adaptation Using Exponentiated Gradient Updates",
        arxiv="2202.00145",
        defaults=_values(
            momentum=0.9,
            beta=0.9,
            gain_lr=1e-2,
            scale_lr=1e-3,
            scope="leaf",
            use_directions=True,
            use_signs=True,
            gain_bounds=(1e-2, 1e2),
            scale_bounds=(0.1, 10.0),
        ),
        learning_rate=Recommendation(
            0.1, 1.0, "momentum SGD's", "measured on digits by examples/step_size.py"
        ),
        tuned=_in_arena(0.33, 33.0),
        state_bytes=12,
        needs_params="never",
    ),
    exponentiated_gradient=OptimizerInfo(
        factory=exponentiated_gradient,
        description="multiplicative updates of positive, simplex or signed parameters",
        paper="Exponentiated Gradient versus Gradient Descent for Linear Predictors",
        arxiv=None,
        defaults=_values(domain="positive", axis=None, weight_decay=0.0),
        state_bytes=0,
        needs_params="always",
    ),
    lamb=OptimizerInfo(
        factory=lamb,
        description="Adam's direction, scaled layer by layer to the weights' norm",
        paper="Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
        arxiv="1904.00962",
        defaults=_values(
            b1=0.9,
            b2=0.999,
            eps=1e-6,
            eps_root=0.0,
            weight_decay=0.0,
            mask=None,
            mu_dtype=None,
            trust_clip=None,
            trust_ratio_mask=True,
            layer_axes=None,
        ),
        learning_rate=_at(
            6.25e-4, "the paper, for BERT at batches from 512 to 32768", times="sqrt(batch / 512)"
        ),
        weight_decay=_at(0.01, "the paper, for BERT"),
        tuned=_in_arena(0.59, 1.9),
        state_bytes=8,
        needs_params="always",
    ),
    lars=OptimizerInfo(
        factory=lars,
        description="momentum SGD whose layers all move in proportion to their weights",
        paper="Large Batch Training of Convolutional Networks",
        arxiv="1708.03888",
        defaults=_values(
            weight_decay=0.0,
            weight_decay_mask=True,
            trust_coefficient=0.001,
            eps=0.0,
            trust_ratio_mask=True,
            momentum=0.9,
            nesterov=False,
            trust_clip=None,
            layer_axes=None,
        ),
        learning_rate=Recommendation(
            10.0, 31.2, None, "Google's MLPerf code for ResNet-50, batches below 16384 to 32768"
        ),
        weight_decay=_at(1e-4, "Google's TPU code for ResNet-50"),
        tuned=_in_arena(31.6, 562.0),
        state_bytes=4,
        needs_params="always",
    ),
    lion=OptimizerInfo(
        factory=lion,
        description="the sign of an interpolation between momentum and gradient",
        paper="Symbolic Discovery of Optimization Algorithms",
        arxiv="2302.06675",
        defaults=_values(b1=0.9, b2=0.99, mu_dtype=None, weight_decay=1e-3, mask=None),
        learning_rate=Recommendation(1 / 10, 1 / 3, _ADAMW, "the authors' README"),
        weight_decay=Recommendation(3.0, 10.0, _ADAMW, "the authors' README"),
        tuned=_in_arena(0.032, 0.32),
        state_bytes=4,
        needs_params="with decay",
    ),
    shampoo=OptimizerInfo(
        factory=shampoo,
        description="a preconditioner for each side of a layer, roots computed on the host",
        paper="Scalable Second Order Optimization for Deep Learning",
        arxiv="2002.09018",
        defaults=_values(
            **_KRONECKER_DEFAULTS,
            graft_to="adam",
            exponent=None,
            b1=0.9,
            b2=0.95,
            nesterov=True,
            init_epsilon=0.0,
            roots=Roots(),
        ),
        learning_rate=_at(1.0, "the paper: a layer's step has the grafted norm", times=_ADAMW),
        weight_decay=_at(1.0, "decoupled as AdamW's", times=_ADAMW),
        tuned=_in_arena(1.9, 3.3),
        state_bytes=20,
        needs_params="with decay",
    ),
    soap=OptimizerInfo(
        factory=soap,
        description="Adam in the eigenbases of Shampoo's statistics",
        paper="SOAP: Improving and Stabilizing Shampoo using Adam",
        arxiv="2409.11321",
        defaults=_values(
            **_KRONECKER_DEFAULTS, b1=0.95, b2=0.95, nesterov=False, roots=Roots(method="eigh")
        ),
        learning_rate=_at(3e-3, "the authors' README"),
        weight_decay=_at(0.01, "the authors' README"),
        tuned=_in_arena(3.2, 3.2),
        state_bytes=24,
        needs_params="with decay",
    ),
)
