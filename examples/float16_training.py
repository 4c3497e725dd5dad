"""Training in float16: a scaled loss, float32 weights in the optimizer's state, and no steps where it overflows."""

from flax import linen
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
import optax

import novoclip

STEPS = 100


class Network(linen.Module):
    """Parameters, activations and gradients are float16."""

    @linen.compact
    def __call__(self, x):
        """Return one number for each."""
        for _ in range(2):
            x = jnp.tanh(linen.Dense(32, dtype=jnp.float16, param_dtype=jnp.float16)(x))
        return linen.Dense(1, dtype=jnp.float16, param_dtype=jnp.float16)(x)


def batch(key):
    x = jax.random.uniform(key, (64, 1), jnp.float16, -2, 2)
    return x, jnp.sin(3 * x)


@jax.jit
def train_step(state, key):
    x, y = batch(key)

    def scaled_loss(params):
        loss = jnp.mean((state.apply_fn(params, x) - y) ** 2, dtype=jnp.float32)
        return loss * novoclip.scale_of(state.opt_state), loss

    gradients, loss = jax.grad(scaled_loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients), loss


def main():
    network = Network()
    # The rule sees unscaled gradients in float32, and the optimizer float32 weights.
    optimizer = optax.chain(novoclip.clip_by_global_norm(1.0), optax.adam(1e-2))
    optimizer = novoclip.master_weights(novoclip.loss_scaling(optimizer, 2.0**20, growth_interval=20))
    params = network.init(jax.random.key(0), jnp.zeros((1, 1), jnp.float16))
    state = TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)
    for step, key in enumerate(jax.random.split(jax.random.key(1), STEPS), 1):
        state, loss = train_step(state, key)
        if step % 20 == 0:
            skipped = int(optax.tree.get(state.opt_state, "skipped"))
            print(f"step {step:3}: scale {novoclip.scale_of(state.opt_state):8.0f}, {skipped} skipped, loss {loss:.4f}")


if __name__ == "__main__":
    main()
