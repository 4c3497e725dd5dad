"""What small optimizer states cost: bytes per parameter, time per step, and the loss of a language model.

    python benchmarks/small_states.py                     # the losses as they are measured, then the table
    python benchmarks/small_states.py --out small.json    # the same, and go on where an earlier run stopped

The model, its text and its batches are those of examples/train_lm.py, without a storm. Learning rates are the ones that
example has for the float32 optimizers, and the narrow states have the same. Adafactor has none there: all the rates in
ADAFACTOR_RATES are trained with the first seed, and the best of them with all seeds.

Weights of 16 bits are widened to float32 for the model, and their gradients are rounded to bfloat16: what differs from
row to row is what is stored, not how the model is computed.
"""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
from pydoc_data.topics import topics
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import novoclip

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from storm_rules import LEARNING_RATES
from storm_training import Task

ADAM, NOVOGRAD = LEARNING_RATES["adam"], LEARNING_RATES["novograd"]
ADAFACTOR_RATES = (0.003, 0.01, 0.03, 0.1)
RANDOM = "bfloat16_stochastic"
CHUNK = 20  # steps in one program
SIZE = 1024  # of the matrix whose bytes are counted and whose steps are timed
ONE, NO_NOISE = np.float32(1), np.bool_(False)


class Row(NamedTuple):
    """An optimizer, and the dtype of its weights."""

    optimizer: optax.GradientTransformation
    weights: str = "float32"


def adafactor(rate: float) -> optax.GradientTransformation:
    """The rows and columns of the model's matrices have 64 or 256 elements; the default factors from 128 on."""
    return optax.adafactor(rate, min_dim_size_to_factor=32)


WHOLE = "Adam, 8 bits, bfloat16 weights with int8 remainder"
ROWS = {
    "Adam, float32": Row(novoclip.adam(ADAM)),
    "Adam, bfloat16 at random": Row(novoclip.adam(ADAM, mu_dtype=RANDOM, nu_dtype=RANDOM)),
    "Adam, 8 bits": Row(novoclip.adam(ADAM, mu_dtype="int8", nu_dtype="int8")),
    WHOLE: Row(
        novoclip.master_weights(novoclip.adam(ADAM, mu_dtype="int8", nu_dtype="int8"), remainder="int8"), "bfloat16"
    ),
    "NovoGrad, float32": Row(novoclip.novograd(NOVOGRAD)),
    "NovoGrad, bfloat16 at random": Row(novoclip.novograd(NOVOGRAD, mu_dtype=RANDOM)),
    "NovoGrad, 8 bits": Row(novoclip.novograd(NOVOGRAD, mu_dtype="int8")),
}
FACTORED = {f"optax.adafactor({rate})": Row(adafactor(rate)) for rate in ADAFACTOR_RATES}
# What the random rounding and the remainder are for.
WITHOUT = {
    "Adam, bfloat16 to nearest": Row(novoclip.adam(ADAM, mu_dtype="bfloat16", nu_dtype="bfloat16")),
    "Adam, bfloat16 weights without remainder": Row(novoclip.adam(ADAM), "bfloat16"),
}
ALL = ROWS | FACTORED | WITHOUT


def as_dtype(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


class Training:
    """Training with one optimizer: one program of CHUNK steps, which all seeds and the timings share."""

    def __init__(self, task: Task, row: Row) -> None:
        def step(carry: Any, _: Any) -> tuple[Any, None]:
            params, state, seed, number = carry
            wide = as_dtype(params, jnp.float32)
            _, gradients = task.gradients(wide, seed, number, ONE, NO_NOISE, per_example=False)
            updates, state = row.optimizer.update(as_dtype(gradients, row.weights), state, params)
            return (optax.apply_updates(params, updates), state, seed, number + 1), None

        self.task, self.row = task, row
        self.run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=CHUNK)[0], donate_argnums=0)

    def start(self, seed: int) -> Any:
        """Return the parameters, the state, the seed, and the number of the step."""
        params = as_dtype(self.task.init(seed), self.row.weights)
        return params, self.row.optimizer.init(params), jnp.int32(seed), jnp.int32(0)

    def loss(self, seed: int, steps: int) -> float:
        """Train, and return the validation loss."""
        carry = self.start(seed)
        for _ in range(steps // CHUNK):
            carry = self.run(carry)
        return float(self.task.validate(as_dtype(carry[0], jnp.float32)))


def bytes_of(row: Row, params: Any) -> float:
    """Return the bytes of the state per parameter."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, row.weights), params)
    return novoclip.state_bytes(row.optimizer, shapes)["per_parameter"]


class Timed:
    """A program with donated buffers, and the seconds that each call of it took."""

    def __init__(self, run: Callable[[Any], Any], carry: Any) -> None:
        self.run, self.carry, self.seconds = run, carry, []

    def call(self) -> None:
        """Call the program with what it returned before."""
        start = time.perf_counter()
        self.carry = jax.block_until_ready(self.run(self.carry))
        self.seconds.append(time.perf_counter() - start)

    def median(self) -> float:
        """Return the median seconds, without the first two calls."""
        return statistics.median(self.seconds[2:])


def matrix_step(row: Row) -> Timed:
    """The optimizer alone, on one large matrix."""
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, SIZE)), row.weights)

    def step(carry: Any) -> Any:
        params, state, gradient = carry
        updates, state = row.optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, gradient

    params = jnp.ones((SIZE, SIZE), row.weights)
    return Timed(jax.jit(step, donate_argnums=0), (params, row.optimizer.init(params), gradient))


def times(subjects: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, measured in turns."""
    for _ in range(rounds):
        for subject in subjects.values():
            subject.call()
    return {name: subject.median() for name, subject in subjects.items()}


def best_rate(losses: dict[str, dict[str, float]]) -> str:
    """Return the Adafactor that was best with the first seed."""
    return min(FACTORED, key=lambda name: losses[name]["0"])


def shown(losses: dict[str, dict[str, float]]) -> list[str]:
    """Return the rows of the table."""
    return [*ROWS, best_rate(losses), *WITHOUT]


def show(found: dict[str, Any], model: Any) -> None:
    first, losses = next(iter(ROWS)), found["losses"]
    matrix = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
    print("\n| optimizer | weights | state | model's state | optimizer's time | step's time | loss | by seed |")
    print("|---|---|---|---|---|---|---|---|")
    for name in shown(losses):
        row, loss = ALL[name], losses[name].values()
        sizes = (bytes_of(row, each) for each in (matrix, model))
        ratios = (found[kind][name] / found[kind][first] for kind in ("matrix", "model"))
        cells = [name, str(jnp.dtype(row.weights).itemsize), *(f"{number:.2f}" for number in sizes)]
        cells += [*(f"{number:.1f}" for number in ratios), f"{statistics.mean(loss):.3f}"]
        print(f"| {' | '.join(cells)} | {', '.join(f'{each:.3f}' for each in loss)} |")
    seconds = found["matrix"][first], found["model"][first] / CHUNK
    print(f"\n{first}: {seconds[0] * 1e3:.1f} ms for the matrix, {seconds[1] * 1e3:.1f} ms a step of training")
    print("; ".join(f"{name}, seed 0: {losses[name]['0']:.3f}" for name in FACTORED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30, help="of the timings of one matrix")
    parser.add_argument("--out", type=Path, help="a JSON file that keeps what was measured")
    options = parser.parse_args()
    kept = options.out is not None and options.out.exists()
    found = json.loads(options.out.read_text()) if kept else {"losses": {name: {} for name in ALL}}
    task = Task("\n".join(topics.values()))
    trainings = {name: Training(task, row) for name, row in ALL.items()}

    def save() -> None:
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))

    def train(name: str, seed: int) -> None:
        losses = found["losses"][name]
        if str(seed) not in losses:
            start = time.perf_counter()
            losses[str(seed)] = trainings[name].loss(seed, options.steps)
            print(f"{name}, seed {seed}: {losses[str(seed)]:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            save()

    for seed in range(options.seeds):
        for name in (*ROWS, *(FACTORED if seed == 0 else [best_rate(found["losses"])]), *WITHOUT):
            train(name, seed)
    if "model" not in found:
        names = shown(found["losses"])
        found["matrix"] = times({name: matrix_step(ALL[name]) for name in names}, options.rounds)
        found["model"] = times({name: Timed(trainings[name].run, trainings[name].start(0)) for name in names}, 10)
        save()
    show(found, jax.eval_shape(task.init, 0))


if __name__ == "__main__":
    main()
