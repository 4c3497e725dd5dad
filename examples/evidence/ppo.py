"""PPO on CartPole with the usual clip of the global norm at 0.5, with rules that learn their limit, and without a clip.

    python examples/evidence/ppo.py

The clip at 0.5 is one of "The 37 implementation details of proximal policy optimization" (Huang et al., 2022),
https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, whose other settings are used here, with more
environments and fewer steps. PPO is by Schulman et al., 2017, https://arxiv.org/abs/1707.06347.
"""

import functools
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax
from shared import mean_and_interval, mean_cell, parser, save, table

import novoclip

ENVIRONMENTS, ROLLOUT, EPOCHS, MINIBATCHES = 8, 64, 4, 4
DISCOUNT, LAMBDA, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.2, 0.01, 0.5
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LONGEST = 500  # steps of an episode
LAST = 0.2  # the fraction of the updates, at the end, that the table's returns average
ADAM = functools.partial(novoclip.adam, eps=1e-5)
OPTIMIZERS = {
    "none": ADAM,
    "clip_by_global_norm(0.5)": lambda rate: ADAM(rate, clip=novoclip.clip_by_global_norm(0.5)),
    "autoclip(90)": lambda rate: ADAM(rate, clip=novoclip.autoclip(90.0, window=200)),
    "zclip()": lambda rate: ADAM(rate, clip=novoclip.zclip()),
    "clip_by_running_mean()": lambda rate: ADAM(rate, clip=novoclip.clip_by_running_mean()),
    "protect": lambda rate: novoclip.protect(ADAM(rate)),
}


class Cart(NamedTuple):
    """A cart with a pole: position, speed, angle, angular speed, and the steps of the episode."""

    physics: jax.Array
    steps: jax.Array


def start(key):
    return Cart(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.int32(0))


def push(cart, action):
    """Return the cart after 0.02 s, and whether the pole fell or the cart left the track.

    The equations are those of Barto, Sutton and Anderson, 1983, https://doi.org/10.1109/TSMC.1983.6313077, without
    friction, with the constants of Gymnasium's CartPole-v1.
    """
    _, speed, angle, spin = cart.physics
    force = jnp.where(action == 1, 10.0, -10.0)
    inertia = (force + 0.05 * spin**2 * jnp.sin(angle)) / 1.1
    lever = 0.5 * (4 / 3 - 0.1 * jnp.cos(angle) ** 2 / 1.1)
    turn = (9.8 * jnp.sin(angle) - jnp.cos(angle) * inertia) / lever
    push_back = inertia - 0.05 * turn * jnp.cos(angle) / 1.1
    physics = cart.physics + 0.02 * jnp.stack([speed, push_back, spin, turn])
    fell = (jnp.abs(physics[0]) > 2.4) | (jnp.abs(physics[2]) > 12 * jnp.pi / 180)
    return Cart(physics, cart.steps + 1), fell


class Rollout(NamedTuple):
    """What was seen and done at each step, in arrays of shape (steps, environments)."""

    seen: jax.Array
    action: jax.Array
    log_probability: jax.Array
    value: jax.Array
    ended: jax.Array
    length: jax.Array  # of the episode that ended, 0 where none did


def init_network(key):
    """Return two perceptrons with two hidden layers of 64 units: one for the logits, one for the value."""

    def layers(key, sizes, gains):
        keys = jax.random.split(key, len(gains))
        make = [jax.nn.initializers.orthogonal(gain) for gain in gains]
        shapes = itertools.pairwise(sizes)
        return [
            {"w": each(part, shape), "b": jnp.zeros(shape[1])}
            for each, part, shape in zip(make, keys, shapes, strict=True)
        ]

    policy, value = jax.random.split(key)
    root = 2**0.5
    return {
        "policy": layers(policy, (4, 64, 64, 2), (root, root, 0.01)),
        "value": layers(value, (4, 64, 64, 1), (root, root, 1.0)),
    }


def apply_layers(layers, x):
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def look(params, seen):
    """Return the logarithms of the probabilities of the actions, and the value."""
    return jax.nn.log_softmax(apply_layers(params["policy"], seen)), apply_layers(params["value"], seen)[..., 0]


def play(params, carts, key):
    """Play for ROLLOUT steps, and return the carts and the Rollout. Episodes that end start anew."""

    def step(carts, key):
        action_key, *keys = jax.random.split(key, ENVIRONMENTS + 1)
        logs, value = look(params, carts.physics)
        action = jax.random.categorical(action_key, logs)
        log_probability = jnp.take_along_axis(logs, action[:, None], axis=1)[:, 0]
        moved, fell = jax.vmap(push)(carts, action)
        ended = fell | (moved.steps >= LONGEST)
        fresh = jax.vmap(start)(jnp.stack(keys))
        after = jax.tree.map(
            lambda new, old: jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, moved
        )
        length = jnp.where(ended, moved.steps, 0)
        return after, Rollout(carts.physics, action, log_probability, value, ended, length)

    return jax.lax.scan(step, carts, jax.random.split(key, ROLLOUT))


def advantages(rollout, last):
    """Return the generalized advantages (Schulman et al., 2015, https://arxiv.org/abs/1506.02438).

    Args:
      rollout: the Rollout.
      last: the values of the carts after it.
    """

    def back(carry, step):
        advantage, following = carry
        value, ended = step
        goes_on = 1.0 - ended
        error = 1.0 + DISCOUNT * following * goes_on - value
        advantage = error + DISCOUNT * LAMBDA * goes_on * advantage
        return (advantage, value), advantage

    steps = (rollout.value, rollout.ended.astype(jnp.float32))
    return jax.lax.scan(back, (jnp.zeros_like(last), last), steps, reverse=True)[1]


def loss_of(params, batch):
    rollout, advantage = batch
    logs, value = look(params, rollout.seen)
    ratio = jnp.exp(jnp.take_along_axis(logs, rollout.action[:, None], axis=1)[:, 0] - rollout.log_probability)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * scaled).mean()
    value_loss = 0.5 * jnp.mean((value - rollout.value - advantage) ** 2)
    entropy = -jnp.sum(jnp.exp(logs) * logs, axis=1).mean()
    return VALUE * value_loss - gain - ENTROPY * entropy


def runner(make_optimizer, updates):
    """Return a compiled function of (seeds, rates): mean lengths of episodes, and largest norms, of each update."""

    def train(seed, rate):
        network_key, cart_key, key = jax.random.split(jax.random.key(seed), 3)
        done = jnp.arange(updates * EPOCHS * MINIBATCHES)
        optimizer = make_optimizer(lambda count: rate * (1 - count / done.size))  # falls to 0, as is usual
        params = init_network(network_key)
        carts = jax.vmap(start)(jax.random.split(cart_key, ENVIRONMENTS))

        def learn(carry, batch):
            params, state = carry
            gradients = jax.grad(loss_of)(params, batch)
            changes, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, changes), state), optax.tree.norm(gradients)

        def one_update(carry, key):
            params, state, carts = carry
            play_key, *epoch_keys = jax.random.split(key, EPOCHS + 1)
            carts, rollout = play(params, carts, play_key)
            advantage = advantages(rollout, look(params, carts.physics)[1])
            flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (rollout, advantage))
            orders = jnp.stack([jax.random.permutation(each, ENVIRONMENTS * ROLLOUT) for each in epoch_keys])
            batches = jax.tree.map(lambda leaf: leaf[orders.reshape(EPOCHS * MINIBATCHES, -1)], flat)
            (params, state), norms = jax.lax.scan(learn, (params, state), batches)
            episodes = jnp.sum(rollout.ended)
            # Without an end every pole stood for the whole rollout: the length so far is the best that is known.
            length = jnp.where(episodes > 0, rollout.length.sum() / jnp.maximum(episodes, 1), carts.steps.mean())
            return (params, state, carts), (length, norms.max())

        carry = (params, optimizer.init(params), carts)
        return jax.lax.scan(one_update, carry, jax.random.split(key, updates))[1]

    return jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))


def draw(curves):
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for panel, place in zip(figure.subplots(1, len(RATES)), range(len(RATES)), strict=True):
        for name, lengths in curves.items():
            mean, half = mean_and_interval(lengths[:, place])
            (line,) = panel.plot(mean, label=name)
            panel.fill_between(range(len(mean)), mean - half, mean + half, color=line.get_color(), alpha=0.12)
        panel.set(title=f"learning rate {RATES[place]:g}", xlabel="update", ylabel="return", ylim=(0, LONGEST + 20))
    figure.axes[0].legend(fontsize=8)
    return figure


def main(argv=None):
    arguments = parser(__doc__.splitlines()[0], steps=150, seeds=8)
    arguments.add_argument("--first", type=int, default=len(OPTIMIZERS), help="how many of the rules to try")
    options = arguments.parse_args(argv)
    rows, curves = [], {}
    last = max(1, int(LAST * options.steps))
    for name, make in list(OPTIMIZERS.items())[: options.first]:
        lengths, norms = map(np.asarray, runner(make, options.steps)(jnp.arange(options.seeds), jnp.array(RATES)))
        curves[name] = lengths
        final = lengths[:, :, -last:].mean(axis=2)
        cells = {f"rate {rate:g}": mean_cell(final[:, place], 0) for place, rate in enumerate(RATES)}
        rows.append(
            {"rule": name} | cells | {"largest norm": float(norms.max()), "median norm": float(np.median(norms))}
        )
        print(rows[-1], file=sys.stderr, flush=True)
    text = (
        f"{table(rows)}\n\nMean return of the last {LAST:.0%} of {options.steps} updates, mean over {options.seeds} "
        f"seeds with 95 % intervals; {LONGEST} is the most that can be reached. An update has {ENVIRONMENTS} "
        f"environments of {ROLLOUT} steps, {EPOCHS} epochs and {MINIBATCHES} minibatches. Norms are the largest of "
        "each update, before the rule, over all seeds and rates."
    )
    save("ppo", text, draw(curves), options.out)


if __name__ == "__main__":
    main()
