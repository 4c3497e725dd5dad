"""Training that saves itself at random steps and goes on from the last: `python -m tests.interrupted FOLDER SEED`."""

from pathlib import Path
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import novoclip

STEPS = 80
RULE = novoclip.skip_spikes(
    optax.chain(
        novoclip.autoclip(50.0, window=12, per="tensor"),
        novoclip.zclip(warmup=5, max_norm=1.0),
        novoclip.adagc(1.05, lambda_abs=1.0, warmup=5),
        optax.adam(0.01),
    ),
    novoclip.limits.deviation(6.0, window=16, warmup=8),
)


def start():
    generator = np.random.default_rng(0)
    params = {"w": jnp.asarray(generator.normal(size=(16, 8)), jnp.float32), "b": jnp.zeros(8)}
    return {"params": params, "state": RULE.init(params)}


@jax.jit
def step(run, number):
    """Step `number`, counted from 1: every seventh gradient is three times too large, two are spikes, one is NaN."""
    x = jax.random.normal(jax.random.key(number), (32, 16))
    params, state = run["params"], run["state"]
    gradients = jax.grad(lambda p: jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) - jnp.sin(x[:, :8])) ** 2))(params)
    size = jnp.where(number % 7 == 0, 3.0, 1.0)
    size = jnp.select([(number == 30) | (number == 61), number == 45], [1000.0, jnp.nan], size)
    updates, state = RULE.update(jax.tree.map(lambda leaf: size * leaf, gradients), state, params)
    return {"params": optax.apply_updates(params, updates), "state": state}


def tell(word, number):
    sys.stdout.write(f"{word} {number}\n")
    sys.stdout.flush()


def train(folder, seed):
    chances = np.random.default_rng(seed)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        first, run = manager.latest_step() or 0, jax.jit(start)()
        if first:
            run = manager.restore(first, args=ocp.args.StandardRestore(jax.eval_shape(lambda: run)))
        tell("from", first)
        for number in range(first + 1, STEPS + 1):
            run = step(run, number)
            if chances.random() < 0.2 or number == STEPS:
                tell("saving", number)
                manager.save(number, args=ocp.args.StandardSave(run))
            time.sleep(0.01)  # so that whoever reads along can stop it at a step
            tell("step", number)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
