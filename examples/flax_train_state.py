"""A clipping rule in a Flax `TrainState`: a curve is fitted to measurements of which some are wildly wrong."""

from flax import linen as nn
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
import optax

import novoclip


class Curve(nn.Module):
    """A function of one number, as a small multilayer perceptron."""

    @nn.compact
    def __call__(self, x):
        """Map (points, 1) to (points, 1)."""
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(nn.tanh(nn.Dense(32)(x)))))


def measure(key):
    """Return 64 points of a sine with a little noise; one batch in ten also has a reading that is 1000 too high."""
    x_key, noise_key, fault_key = jax.random.split(key, 3)
    x = jax.random.uniform(x_key, (64, 1), minval=-3.0, maxval=3.0)
    y = jnp.sin(2 * x) + 0.05 * jax.random.normal(noise_key, x.shape)
    return x, y.at[0].add(1000.0 * jax.random.bernoulli(fault_key, 0.1))


@jax.jit
def train_step(state, key):
    x, y = measure(key)
    gradients = jax.grad(lambda params: jnp.mean((state.apply_fn(params, x) - y) ** 2))(state.params)
    return state.apply_gradients(grads=gradients)


@jax.jit
def error(state):
    """Return the mean squared distance from the true curve."""
    x = jnp.linspace(-3.0, 3.0, 200)[:, None]
    return jnp.mean((state.apply_fn(state.params, x) - jnp.sin(2 * x)) ** 2)


def main():
    curve = Curve()
    params = curve.init(jax.random.key(0), jnp.zeros((1, 1)))
    rules = {"Adam alone": optax.identity(), "Adam behind autoclip": novoclip.autoclip(50.0, window=200)}
    for name, rule in rules.items():
        optimizer = optax.chain(rule, optax.adam(3e-3))
        state = TrainState.create(apply_fn=curve.apply, params=params, tx=optimizer)
        before = error(state)
        for key in jax.random.split(jax.random.key(1), 1500):
            state = train_step(state, key)
        print(f"{name}: distance from the true curve {before:.4f} -> {error(state):.4f}")
        for statistic, value in novoclip.metrics(state.opt_state).items():
            print(f"  {statistic:<15} {value:.4g}")


if __name__ == "__main__":
    main()
