"""Measure on a GPU or TPU: steps of clip + Adam beside Optax's, kernels, host waits, and the tests of numerics.

    python benchmarks/accelerator.py [--minutes 8] [--scale 1.0] [--only NAME ...] [--no-tests]

Prints Markdown. For each set of leaves and each rule: the median time of a step (donated parameters and state, many
steps in a row, one wait at the end), the share of the bandwidth that an in-place triad reaches on the same device, the
time that the host needs to send a step off, and, from the compiled program, how many kernels it has and how many
loops and branches, at each of which the host of a GPU waits. A set is begun only while there is time left.
`--scale 0.001` makes everything small, to try the command on a CPU.
"""

import argparse
from collections.abc import Callable, Iterator
import functools
import math
import os
from pathlib import Path
import re
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent.parent))
import novoclip

Transform = optax.GradientTransformation
BYTES_OF_ADAM = 28  # in float32: read gradient, parameter and both moments; write the last three
BACKENDS = {"gpu": "cuda,cpu"}  # what JAX_PLATFORMS is given; callbacks need a CPU beside it
# Of eight CPU devices, of what XLA's CPU backend makes of Optax, and of callbacks.
ONLY_CPU = ("sharded_arrays", "pmap_with", "optax_makes_one_and_two", "cost_another_pass")
TESTS = ("tests/test_norms.py", "tests/test_rules.py", "tests/test_optimizers.py", "tests/test_closed_forms.py")


class Row(NamedTuple):
    """What was measured of one transform."""

    milliseconds: float
    sent: float
    compiling: float
    kernels: int
    waits: int
    temporary: float


def selected(inner: Transform) -> Transform:
    """Skip steps that are not finite by selecting between old and new values, instead of a branch."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(updates)]))
        sent, new = inner.update(updates, state, params)
        keep = functools.partial(jax.tree.map, lambda a, b: jnp.where(finite, a, b))
        return keep(sent, jax.tree.map(jnp.zeros_like, sent)), keep(new, state)

    return optax.GradientTransformation(inner.init, update)


def adam(*rules: Transform) -> Transform:
    """Return Adam after the rules."""
    return optax.chain(*rules, optax.adam(1e-3, mu_dtype=jnp.float32))


GLOBAL: dict[str, Callable[[], Transform]] = {
    "optax.adam": adam,
    "optax.clip_by_global_norm + optax.adam": lambda: adam(optax.clip_by_global_norm(1.0)),
    "clip_by_global_norm + optax.adam": lambda: adam(novoclip.clip_by_global_norm(1.0)),
}
GUARDS: dict[str, Callable[[], Transform]] = {
    "optax.apply_if_finite(adam), a branch": lambda: optax.apply_if_finite(adam(), 5),
    "guard_nonfinite(adam), a branch": lambda: novoclip.guard_nonfinite(adam()),
    "the same by a select": lambda: selected(adam()),
    "skip_spikes(adam), a branch": lambda: novoclip.skip_spikes(adam()),
}
REST: dict[str, Callable[[], Transform]] = {
    "autoclip + optax.adam": lambda: adam(novoclip.autoclip(90.0)),
    "adam(clip=clip_by_global_norm)": lambda: novoclip.adam(1e-3, clip=novoclip.clip_by_global_norm(1.0)),
    "optax.clip_by_block_rms + optax.adam": lambda: adam(optax.clip_by_block_rms(1.0)),
    "clip_by_norm per tensor + optax.adam": lambda: adam(novoclip.clip_by_norm(1.0)),
    "optax.adaptive_grad_clip + optax.adam": lambda: adam(optax.adaptive_grad_clip(0.01)),
    "agc + optax.adam": lambda: adam(novoclip.agc(0.01)),
}


def gpt2() -> list[tuple[int, ...]]:
    """Return the shapes of GPT-2 small: 148 leaves, 124M elements."""
    block = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,), (768, 3072), (3072,)]
    return [(50257, 768), (1024, 768), *([*block, (3072, 768), (768,)] * 12), (768,), (768,)]


def mixed(count: int, largest: int) -> list[tuple[int, ...]]:
    """Return matrices of many shapes, as large language models have them."""
    return [(largest // (1 + i % 4), 256 + 64 * (i % 7)) for i in range(count)]


def sets(scale: float) -> Iterator[tuple[str, list[tuple[int, ...]], dict[str, Callable[[], Transform]]]]:
    """Yield name, shapes and transforms of each set of leaves."""

    def scaled(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [(max(int(shape[0] * scale), 1), *shape[1:]) for shape in shapes]

    yield "one leaf of 1G", scaled([(1 << 16, 1 << 14)]), GLOBAL
    yield "GPT-2, 148 leaves", scaled(gpt2()), GLOBAL | GUARDS | REST
    yield "500 leaves", scaled(mixed(500, 2048)), GLOBAL
    yield "one leaf of 256M", scaled([(1 << 14, 1 << 14)]), GUARDS | REST
    yield "4000 leaves", scaled(mixed(4000, 256)), GLOBAL


def measure(transform: Transform, shapes: list[tuple[int, ...]], dtype: Any, rounds: int) -> Row:
    """Return the medians of a few rounds of steps."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    gradients = [jnp.full(shape, 1e-3, dtype) for shape in shapes]
    params = [jnp.ones(shape, dtype) for shape in shapes]
    state = jax.jit(transform.init)(params)
    start = time.perf_counter()
    compiled = step.lower(params, state, gradients).compile()
    compiling = time.perf_counter() - start
    params, state = jax.block_until_ready(compiled(params, state, gradients))
    totals, sendings = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(10):
            params, state = compiled(params, state, gradients)
        sendings.append((time.perf_counter() - start) / 10)
        jax.block_until_ready((params, state))
        totals.append((time.perf_counter() - start) / 10)
    text = compiled.as_text()
    entry = text[text.index("\nENTRY ") :]
    waits = len(re.findall(r" (?:while|conditional)\(", text))
    kernels = len(re.findall(r" (?:fusion|custom-call|reduce|copy|sort)\(", entry))
    temporary = compiled.memory_analysis().temp_size_in_bytes / sum(leaf.nbytes for leaf in gradients)
    return Row(1e3 * statistics.median(totals), 1e3 * statistics.median(sendings), compiling, kernels, waits, temporary)


def triad(size: int) -> float:
    """Return the bytes a second of y <- y + a x, in place."""
    run = jax.jit(lambda y, x: y + 0.5 * x, donate_argnums=0)
    x, y = jnp.ones(size), jnp.ones(size)
    y = jax.block_until_ready(run(y, x))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(10):
            y = run(y, x)
        jax.block_until_ready(y)
        times.append((time.perf_counter() - start) / 10)
    return 12 * size / statistics.median(times)


def table(options: argparse.Namespace, until: float) -> None:
    """Print a table for each set of leaves that there is time for."""
    bandwidth = triad(max(int(options.scale * (1 << 28)), 1024))
    print(f"An in-place triad moves {bandwidth / 1e9:,.0f} GB/s.\n")
    for name, shapes, transforms in sets(options.scale):
        for dtype in (jnp.float32, jnp.bfloat16):
            title = f"{name}, {jnp.dtype(dtype).name}"
            if options.only and not any(part in title for part in options.only):
                continue
            if time.perf_counter() > until:
                print(f"{title}: no time was left.\n")
                continue
            size = sum(map(math.prod, shapes))
            print(f"### {title}: {size / 1e6:,.1f}M elements\n")
            print(
                "| step | ms | of the triad | ms to send | compiling, s | kernels | waits | temporaries / gradients |"
            )
            print("|---|---|---|---|---|---|---|---|")
            width = jnp.dtype(dtype).itemsize
            for label, make in transforms.items():
                if time.perf_counter() > until:
                    print(f"| {label} | no time was left |", flush=True)
                    continue
                moved = size * (BYTES_OF_ADAM - 3 * (4 - width) + (width if "clip" in label else 0))
                try:
                    row = measure(make(), shapes, dtype, rounds=5)
                except (
                    TypeError,
                    RuntimeError,
                ) as error:  # of Optax, or of memory
                    print(f"| {label} | {type(error).__name__}: {str(error).splitlines()[0][:80]} |", flush=True)
                    continue
                part = moved / (row.milliseconds / 1e3) / bandwidth
                figures = f"{row.milliseconds:.2f} | {part:.0%} | {row.sent:.2f} | {row.compiling:.1f}"
                print(f"| {label} | {figures} | {row.kernels} | {row.waits} | {row.temporary:.3f} |", flush=True)
            print()


def tests(seconds: float) -> None:
    """Run the tests of numerics on this device, and print their last line."""
    environment = {
        "NOVOCLIP_TEST_PLATFORM": f"{BACKENDS.get(jax.default_backend(), jax.default_backend())}",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    environment |= {"NOVOCLIP_XLA": "usual"}
    options = [
        "-q",
        "-p",
        "no:benchmark",
        "-n",
        str(min(os.cpu_count() or 1, 8)),
        "-k",
        f"not ({' or '.join(ONLY_CPU)})",
    ]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    root = Path(__file__).parent.parent
    print(f"### Tests of numerics: `pytest {' '.join(TESTS)}`\n", flush=True)
    try:
        run = subprocess.run(
            command,
            env=os.environ | environment,
            cwd=root,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        lines = [line for line in run.stdout.splitlines() if re.match(r"FAILED|ERROR|.* (passed|failed)", line)]
        print("```\n" + "\n".join(line[:160] for line in lines) + "\n```\n")
    except subprocess.TimeoutExpired:
        print(f"Not done in {seconds:.0f} s.\n")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--no-tests", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({jax.default_backend()}), jax {jax.__version__}, optax {optax.__version__}\n",
        flush=True,
    )
    total = 60 * options.minutes
    table(options, start + (0.6 if not options.no_tests else 0.9) * total)
    if not options.no_tests:
        tests(max(start + total - time.perf_counter(), 30))


if __name__ == "__main__":
    main()
