"""What the devices of one program send each other, read from the program itself.

Bytes are those that reach a device, of a group of g: (g − 1)/g of what an all-gather or an
all-to-all gives it, twice that for an all-reduce, as on a ring. Loops are not counted: none of the
programs here communicates in one, and one that did is refused.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax


class Collective(NamedTuple):
    """One exchange among devices.

    Attributes:
      kind: In XLA's words, "all-gather" and so on.
      bytes: That reach each device.
    """

    kind: str
    bytes: float


def by_kind(exchanges: Iterable[Collective]) -> dict[str, float]:
    """Bytes that reach a device, in all."""
    found: dict[str, float] = defaultdict(float)
    for kind, number in exchanges:
        found[kind] += number
    return dict(found)


_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
_INSTRUCTION = re.compile(rf" = (\(.*?\)|\S+) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\w*\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([0-9,]*)\}|\[\d+,(\d+)\]<=|mesh\[(.*?)\] \{(.*?)\})")


def of_program(text: str) -> list[Collective]:
    """Of a compiled program's HLO, each step's; branches that a step may take are left out."""
    found, name = {}, ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = "ENTRY" if match[1] else match[2]
        elif match := _INSTRUCTION.search(line):
            found.setdefault(name, []).append(_instruction(line, *match.groups()))
    elsewhere = set(found) - {"ENTRY"}
    if any(f"body=%{name}" in text or f"to_apply=%{name}" in text for name in elsewhere):
        raise NotImplementedError(f"collectives in a loop or a call: {sorted(elsewhere)}")
    return found.get("ENTRY", [])


def _instruction(line: str, shape: str, kind: str, start: str | None) -> Collective:
    if start:
        raise NotImplementedError(f"{kind}-start: only programs for CPUs are read")
    size = sum(_array_bytes(*match.groups()) for match in _ARRAY.finditer(shape))
    if kind == "collective-permute":
        return Collective(kind, size)
    return Collective(kind, _received(kind, size, _group_size(line)))


def _array_bytes(dtype: str, lengths: str) -> int:
    bits = re.search(r"\d+", dtype)
    each = int(bits[0]) // 8 if bits else 1  # pred
    return each * math.prod(int(n) for n in lengths.split(",") if n)


def _group_size(line: str) -> int:
    match = _GROUPS.search(line)
    if match is None:
        raise NotImplementedError(f"replica groups in another form: {line}")
    members, size, axes, names = match.groups()
    if axes is None:
        return int(size) if size else len(members.split(","))
    lengths = dict(re.findall(r"('\w+')=(\d+)", axes))
    return math.prod(int(lengths[name]) for name in re.findall(r"'\w+'", names))


def _received(kind: str, size: float, group: int) -> float:
    """Of a result of `size` bytes."""
    if kind == "reduce-scatter":
        return size * (group - 1)
    return size * (1 + (kind == "all-reduce")) * (group - 1) / group


_PRIMITIVES = {
    "all_gather": "all-gather",
    "all_to_all": "all-to-all",
    "pmax": "all-reduce",
    "psum": "all-reduce",
}


def of_jaxpr(closed: Any) -> list[Collective]:
    """Of a traced program, for a mesh that need not exist.

    What it says itself, in `jax.shard_map` and by resharding; sums over axes that are divided,
    single numbers here, are left to XLA and not counted.
    """
    return list(_of_equations(closed.jaxpr, {}))


def _of_equations(jaxpr: Any, mesh: Mapping[str, int]) -> Iterator[Collective]:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in _PRIMITIVES:
            axes = params.get("axis_name", params.get("axes"))
            axes = (axes,) if isinstance(axes, str) else axes
            group = math.prod(mesh[axis] for axis in axes)
            out = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
            yield Collective(kind := _PRIMITIVES[name], _received(kind, out, group))
        elif name == "reshard":
            before, after = (v.aval for v in (equation.invars[0], equation.outvars[0]))
            yield from _resharded(before, after)
        inside = dict(params["mesh"].shape) if "mesh" in params else mesh
        inner = [x for body in _bodies(params) for x in _of_equations(body, inside)]
        if name in ("cond", "while", "scan") and inner:
            raise NotImplementedError(f"collectives within {name}")
        yield from inner


def _bodies(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(body := getattr(part, "jaxpr", part), "eqns"):
                yield body


def _bytes(aval: Any) -> int:
    """Of the part on each device."""
    return math.prod(aval.sharding.shard_shape(aval.shape)) * aval.dtype.itemsize


def _resharded(before: Any, after: Any) -> Iterator[Collective]:
    """An array that is gathered along some mesh axes; cutting it costs nothing."""
    divided, still = (_divisions(x.sharding.spec, x.ndim) for x in (before, after))
    if all(old[: len(new)] == new for old, new in zip(divided, still, strict=True)):
        if (received := _bytes(after) - _bytes(before)) > 0:
            yield Collective("all-gather", received)
    elif not all(new[: len(old)] == old for old, new in zip(divided, still, strict=True)):
        raise NotImplementedError(f"from {before.sharding} to {after.sharding}")


def _divisions(spec: jax.sharding.PartitionSpec, ndim: int) -> list[tuple[str, ...]]:
    names = [(x,) if isinstance(x, str) else tuple(x or ()) for x in spec]
    return names + [()] * (ndim - len(names))
