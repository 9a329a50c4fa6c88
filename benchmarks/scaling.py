"""What Shampoo's parts take on a mesh: memory, root work and messages, per device and in total.

First measured, on CPU devices and the parameters of `benchmarks.refresh` (6 × (512², 512) and 4 ×
512×2048: 22 blocks, 44 factors): state from the shards of the real arrays after a step, messages
from the compiled program, root work from the table of blocks in the state. All devices share this
machine's cores, so no speed-up is to be seen: a step's CPU time is the total work of all of them.

Then planned, for a language model of 70 billion parameters on devices that need not exist: the
same `init` and `update`, traced for an abstract mesh, nothing else.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --quick --devices 1 8
    python -m benchmarks.scaling --rows plan --json plan.json --markdown plan.md
"""

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits

import optax_zoo as zoo
from benchmarks import collectives
from benchmarks.refresh._common import FOREVER, Size, bytes_of
from benchmarks.roots import statistics
from benchmarks.update_speed import machine
from optax_zoo import _host
from optax_zoo._host_roots import inverse_pth_roots
from optax_zoo._shampoo import _planning

GROUPS = ("measured", "plan")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures and plans Shampoo on a mesh."""

    rows: tuple[str, ...] = GROUPS
    """What to do: "measured", "plan" or both."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many CPU devices to measure on."""
    quick: bool = False
    """Tiny matrices, to see that it runs: the times mean nothing."""
    samples: int = 5
    """Steps timed; the fastest counts."""
    model_devices: int = 512
    """Devices of the model that is planned, eight to a host."""
    step_seconds: float = 10.0
    """What a training step of that model is taken to last."""
    json: Path | None = None
    """Where to write the figures as JSON."""
    markdown: Path | None = None
    """Where to write the tables as Markdown."""

    def __post_init__(self):
        if unknown := set(self.rows) - set(GROUPS):
            raise ValueError(f"rows has {sorted(unknown)}; choose from {', '.join(GROUPS)}")
        if min(self.devices) < 1 or self.samples < 1:
            raise ValueError(f"devices and samples must be >= 1, got {self}")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How parameters lie on a mesh.

    Attributes:
      name: What it is called.
      lengths: Of the mesh's axes, for a number of devices.
      spec: Of a parameter, by its shape.
    """

    name: str
    lengths: Callable[[int], tuple[int, ...]]
    spec: Callable[[tuple[int, ...]], PartitionSpec]

    def mesh(self, devices: int, kind: AxisType) -> jax.sharding.Mesh:
        """Of the first devices."""
        lengths = self.lengths(devices)
        names = ("data", "model")[: len(lengths)]
        return jax.make_mesh(lengths, names, (kind,) * len(names), devices=jax.devices()[:devices])


LAYOUTS = (
    Layout("replicated", lambda n: (n,), lambda _: PartitionSpec()),
    Layout("FSDP", lambda n: (n,), lambda _: PartitionSpec("data")),
    Layout(
        "FSDP and tensor",
        lambda n: (n // 2, 2),
        lambda shape: PartitionSpec(*("data", "model")[: len(shape)]),
    ),
)


def cases(devices: Sequence[int]) -> Iterator[tuple[Layout, int, AxisType]]:
    """What is measured."""
    replicated, fsdp, tensor = LAYOUTS
    several, most = [n for n in devices if n > 1], max(devices)
    yield from ((fsdp, n, AxisType.Explicit) for n in devices)
    yield from ((fsdp, n, AxisType.Auto) for n in several)
    yield from ((replicated, n, AxisType.Explicit) for n in several)
    if most % 2 == 0:
        yield replicated, most, AxisType.Auto
        yield tensor, most, AxisType.Explicit
        yield tensor, most, AxisType.Auto


def by_device(tree: Any) -> Counter[Any]:
    """Bytes of arrays on each device."""
    found: Counter[Any] = Counter()
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return found


def root_work(factors: Sequence[Any]) -> np.ndarray:
    """Σ n³ over the factors of each device, of places that hold a block."""
    work = 0
    for stack in factors:
        axes, n = stack.age.shape[1], stack.roots.shape[-2]
        work = work + axes * n**3 * (np.asarray(stack.blocks) >= 0).sum(1)
    return np.asarray(work)


def measure(size: Size, layout: Layout, devices: int, kind: AxisType) -> dict[str, Any]:
    """One row of the first table."""
    mesh = layout.mesh(devices, kind)
    tx = zoo.scale_by_shampoo(
        exponent=2,
        graft_to="adam",
        blocks=size.blocks,
        refresh=zoo.Refresh(every=FOREVER),
        mesh=mesh,
    )

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -1e-3 * u, updates)), state

    def placed(arrays):
        spread = {name: NamedSharding(mesh, layout.spec(x.shape)) for name, x in arrays.items()}
        return jax.device_put(arrays, spread)

    with jax.sharding.set_mesh(mesh):
        params, gradients = placed(size.arrays(0)), placed(size.arrays(1, scale=1e-2))
        carry = params, tx.init(params)
        program = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, gradients).compile()
        seconds = []
        for _ in range(size.samples + 1):
            start = time.process_time()
            carry = jax.block_until_ready(program(*carry, gradients))
            seconds.append(time.process_time() - start)
    state: Any = carry[1]
    whole = bytes_of(jax.eval_shape(_alone(size).init, size.structs()))
    work = root_work(state.factors) / size.order**3
    per_device = by_device(state)
    largest = max(per_device.values())
    return {
        "layout": layout.name,
        "axes": kind.name,
        "devices": devices,
        "factors_bytes": max(by_device(state.factors).values()),
        "moments_bytes": max(by_device((state.mu, state.graft)).values()),
        "state_bytes": largest,
        "state_bytes_in_all": sum(per_device.values()),
        "over_own_total": largest * devices / sum(x.nbytes for x in jax.tree.leaves(state)),
        "over_total": largest * devices / whole,
        "roots_largest": float(work.max()),
        "roots_mean": float(work.mean()),
        "received_bytes": collectives.by_kind(collectives.of_program(program.as_text() or "")),
        "cpu_seconds": min(seconds[1:]),
    }


def _alone(size: Size) -> optax.GradientTransformation:
    return zoo.scale_by_shampoo(graft_to="adam", blocks=size.blocks)


LAYERS, WIDTH, HIDDEN, VOCABULARY, KEYS = 80, 8192, 28672, 128256, 1024
"""Of Llama 3 70B: 64 heads of 128, 8 of them for keys and values."""


def model() -> dict[str, tuple[tuple[int, ...], PartitionSpec]]:
    """Its parameters, layers stacked; each is spread over "data" along its axis of `WIDTH`."""
    rows, columns = PartitionSpec(None, "data", None), PartitionSpec(None, None, "data")
    return {
        "embedding": ((VOCABULARY, WIDTH), PartitionSpec(None, "data")),
        "layers/attention_norm": ((LAYERS, WIDTH), PartitionSpec(None, "data")),
        "layers/down": ((LAYERS, HIDDEN, WIDTH), columns),
        "layers/gate": ((LAYERS, WIDTH, HIDDEN), rows),
        "layers/key": ((LAYERS, WIDTH, KEYS), rows),
        "layers/mlp_norm": ((LAYERS, WIDTH), PartitionSpec(None, "data")),
        "layers/out": ((LAYERS, WIDTH, WIDTH), columns),
        "layers/query": ((LAYERS, WIDTH, WIDTH), rows),
        "layers/up": ((LAYERS, WIDTH, HIDDEN), rows),
        "layers/value": ((LAYERS, WIDTH, KEYS), rows),
        "norm": ((WIDTH,), PartitionSpec("data")),
        "unembedding": ((WIDTH, VOCABULARY), PartitionSpec("data", None)),
    }


def bytes_per_device(tree: Any) -> int:
    """Of arrays to be, on an abstract mesh."""
    leaves = jax.tree.leaves(tree)
    shapes = [x.sharding.shard_shape(x.shape) if x.sharding else x.shape for x in leaves]
    return sum(math.prod(s) * x.dtype.itemsize for s, x in zip(shapes, leaves, strict=True))


def plan(settings: Settings, size: int, root_seconds: float) -> dict[str, Any]:
    """One row of the second table, for blocks of `size`, one root of which takes so long."""
    count = settings.model_devices
    mesh = AbstractMesh((count,), ("data",), axis_types=(AxisType.Explicit,))
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for name, (shape, spec) in model().items()
    }
    tx = zoo.scale_by_shampoo(
        exponent=2,
        graft_to="adam",
        layer_axes=lambda path, _: int("layers" in path[0]),
        blocks=zoo.Blocks(size=size, skip_above=HIDDEN),
        mesh=mesh,
    )
    start = time.perf_counter()
    state: Any = jax.eval_shape(tx.init, params)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(tx.update).trace(params, state)
    traced_seconds = time.perf_counter() - start
    received = collectives.by_kind(collectives.of_jaxpr(traced.jaxpr))
    # A device's own part of each stack: its places, empty ones counted.
    places = [stack.age.sharding.shard_shape(stack.age.shape) for stack in state.factors]
    orders = [stack.roots.shape[-2] for stack in state.factors]
    roots = sum(math.prod(p) * (n / size) ** 3 for p, n in zip(places, orders, strict=True))
    parameters = sum(math.prod(shape) for shape, _ in model().values())
    workers = _host._MOST_WORKERS
    host_seconds = roots * min(8, count) * root_seconds / workers
    proposed = _planning._proposal(
        [zoo.Roots()], [host_seconds], 0, 0, settings.step_seconds
    ).refresh
    return {
        "block": size,
        "devices": count,
        "parameters": parameters,
        "factors_bytes": bytes_per_device(state.factors),
        "moments_bytes": bytes_per_device((state.mu, state.graft)),
        "state_bytes_in_all": bytes_of(state),
        "received_bytes": sum(received.values()),
        "received_by_kind": received,
        # Of each step of FSDP itself, in bfloat16: parameters twice, gradients once.
        "fsdp_bytes": 3 * 2 * parameters * (count - 1) / count,
        "roots": roots,
        "root_seconds": root_seconds,
        "host_seconds": host_seconds,
        "every": proposed.every,
        "traced_seconds": traced_seconds,
    }


def root_and_product(n: int) -> tuple[float, float]:
    """CPU seconds of a root of order n as on a worker, and of NumPy's product, float64."""
    a = statistics(n)
    b = a.copy()  # NumPy knows a product with itself
    with threadpool_limits(1):
        root = _cpu_seconds(lambda: inverse_pth_roots(a[None], 2, "schur_newton", 1e-4))
        return root, _cpu_seconds(lambda: a @ b)


def _cpu_seconds(call: Callable[[], Any]) -> float:
    """The least of five, all threads: unlike the clock, it is not others' work on the machine."""
    found = []
    for _ in range(5):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


MEASURED = {
    "parameters": lambda row: row["layout"],
    "axis types": lambda row: row["axes"],
    "devices": lambda row: str(row["devices"]),
    "statistics, roots": lambda row: _mega(row["factors_bytes"]),
    "moments": lambda row: _mega(row["moments_bytes"]),
    "state in all": lambda row: _mega(row["state_bytes_in_all"]),
    "to an even share": lambda row: f"{row['over_own_total']:.3f}",
    "unpadded": lambda row: f"{row['over_total']:.3f}",
    "roots, largest / mean": lambda row: f"{row['roots_largest']:g} / {row['roots_mean']:.2f}",
    "all-to-all": lambda row: _mega(row["received_bytes"].get("all-to-all", 0)),
    "all-gather": lambda row: _mega(row["received_bytes"].get("all-gather", 0)),
    "CPU time of a step": lambda row: f"{row['cpu_seconds'] * 1e3:.0f} ms",
}
MEASURED_NOTE = (
    "Per device, the one with most: bytes of state after a step; all of it over an even share of "
    "the program's own arrays, and of what one device has without a mesh; roots of each refresh; "
    "bytes that a step's collectives bring it. State in all and CPU time: all devices together."
)
PLANNED = {
    "blocks": lambda row: f"{row['block']}²",
    "statistics, roots": lambda row: _giga(row["factors_bytes"]),
    "moments": lambda row: _giga(row["moments_bytes"]),
    "state in all": lambda row: _giga(row["state_bytes_in_all"]),
    "received in a step": lambda row: _giga(row["received_bytes"]),
    "of FSDP's own": lambda row: f"{row['received_bytes'] / row['fsdp_bytes']:.1%}",
    "roots of a device": lambda row: f"{row['roots']:.0f}",
    "roots of a host": lambda row: f"{row['host_seconds']:.0f} s",
    "N": lambda row: str(row["every"]),
}


def _mega(size: float) -> str:
    if 0 < size < 5e4:
        return "< 0.1 MB"
    return f"{size / 1e6:.1f} MB" if size else "–"


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def planned_note(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the second table takes for granted."""
    times = ", ".join(f"{row['root_seconds']:.2f} s for {row['block']}" for row in rows)
    return (
        f"{rows[0]['parameters'] / 1e9:.1f} billion parameters in bfloat16, layers stacked, on "
        f"{settings.model_devices} devices with Explicit axes, FSDP along the width; embeddings "
        "have moments alone. Roots on the host, float64: one core here takes "
        f"{times} (above 1024 scaled by n³), a host of eight devices has "
        f"{_host._MOST_WORKERS} such workers; N = D hides them, with a quarter to spare, behind "
        f"steps of {settings.step_seconds:g} s. FSDP's own: bfloat16 parameters gathered twice and "
        "gradients scattered once. Tracing took "
        f"{', '.join(format(row['traced_seconds'], '.1f') for row in rows)} s."
    )


def _plans(settings: Settings) -> list[dict[str, Any]]:
    sizes, timed = (512, 1024, 2048), (256,) if settings.quick else (512, 1024)
    seconds = {n: root_and_product(n)[0] for n in timed}
    return [
        plan(settings, n, seconds[base] * (n / base) ** 3)
        for n in sizes
        for base in [min(n, max(timed))]
    ]


def _markdown(title: str, cells: list[list[str]], headings: Sequence[str], note: str) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(headings) + " |"]
    lines += ["|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells), "", note, ""])


def main(settings: Settings) -> None:
    """Measures and plans, prints the tables and writes what was asked for."""
    jax.config.update("jax_num_cpu_devices", max(settings.devices))
    console, results, texts = Console(), {}, [f"Measured on {machine()}.", ""]

    def show(title, columns, rows, note):
        cells = [[form(row) for form in columns.values()] for row in rows]
        table = Table(*columns, title=title)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in cells:
            table.add_row(*row)
        console.print(table)
        console.print(note, highlight=False)
        texts.append(_markdown(title, cells, list(columns), note))

    if "measured" in settings.rows:
        size = Size(64 if settings.quick else 512, 1 if settings.quick else settings.samples, 0, 0)
        todo = track([*cases(settings.devices)], description="Measured", transient=True)
        results["measured"] = [measure(size, *case) for case in todo]
        root, product = root_and_product(size.order)
        note = f"{MEASURED_NOTE} A root of {size.order} takes {root * 1e3:.0f} ms on a core, "
        note += f"{root / product:.0f} products of {size.order}³ in float64."
        show("Shampoo on a mesh", MEASURED, results["measured"], note)
    if "plan" in settings.rows:
        results["plan"] = _plans(settings)
        title = f"A model of 70 billion parameters on {settings.model_devices} devices"
        show(title, PLANNED, results["plan"], planned_note(settings, results["plan"]))
    console.print(machine(), highlight=False)
    if settings.json is not None:
        text = json.dumps({"machine": machine(), **results}, indent=2)
        settings.json.write_text(text, encoding="utf-8")
    if settings.markdown is not None:
        settings.markdown.write_text("\n".join(texts), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
