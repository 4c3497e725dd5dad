"""Rules train inside whatever Optax, Flax, Equinox, Haiku and Optimistix put around them."""

import equinox as eqx
import flax
from flax import linen, nnx
from flax.training.train_state import TrainState
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import optimistix as optx
import pytest

import novoclip

STEPS = 30
RULE = novoclip.clip_by_global_norm(1.0)


def data():
    x = np.linspace(-2.0, 2.0, 32, dtype=np.float32)[:, None] * np.float32([1.0, 0.5, -1.0])
    return x, np.sin(x[:, :1])


def params():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    return {"hidden": {"w": draw(3, 8), "b": jnp.zeros(8)}, "out": {"w": draw(8, 1), "b": jnp.zeros(1)}}


@jax.jit
def loss_of(params):
    x, y = data()
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] + params["out"]["b"] - y) ** 2)


def trained(optimizer, evaluated=lambda params, state: params):
    """The last state, its metrics, and the losses before and after STEPS steps in one scan."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        weights, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights)
        updates, state = optimizer.update(gradients, state, weights, value=loss)
        return (optax.apply_updates(weights, updates), state), None

    @jax.jit
    def run(start):
        first = start, optimizer.init(start)
        last, _ = jax.lax.scan(step, first, length=STEPS)
        return last[1], novoclip.metrics(last[1]), loss_of(evaluated(*first)), loss_of(evaluated(*last))

    return run(params())


def times_clipped(metrics):
    return max(int(value) for name, value in metrics.items() if name.endswith("/clipped"))


def label(tree):
    return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in tree.items()}


def biases(tree):
    return {name: {"w": False, "b": True} for name in tree}


def chained():
    return optax.chain(RULE, optax.adam(0.05))


@pytest.mark.parametrize(
    ("optimizer", "counted"),
    [
        (chained(), STEPS),
        (optax.named_chain(("clip", novoclip.autoclip(50.0)), ("descent", optax.adam(0.05))), STEPS),
        (optax.partition({"hidden": chained(), "out": optax.chain(RULE, optax.sgd(0.05))}, label), STEPS),
        (optax.chain(RULE, optax.partition({"hidden": optax.adam(0.05), "out": optax.sgd(0.05)}, label)), STEPS),
        (optax.chain(optax.masked(novoclip.clip_by_norm(0.1), biases), optax.adam(0.05)), STEPS),
        (optax.MultiSteps(chained(), 2).gradient_transformation(), STEPS // 2),
        (novoclip.skip_spikes(optax.MultiSteps(chained(), 2).gradient_transformation()), STEPS // 2),
        (optax.apply_if_finite(chained(), 3), STEPS),
        (optax.chain(chained(), optax.contrib.reduce_on_plateau(patience=5)), STEPS),
        (optax.chain(novoclip.skip_spikes(chained()), optax.contrib.reduce_on_plateau(patience=5)), STEPS),
        (optax.flatten(chained()), STEPS),
    ],
    ids=[
        "chain",
        "named_chain",
        "partition, a rule in each group",
        "partition behind a rule",
        "masked",
        "MultiSteps",
        "MultiSteps in a guard",
        "apply_if_finite",
        "reduce_on_plateau",
        "reduce_on_plateau behind a guard",
        "flatten",
    ],
)
def test_it_trains_inside(optimizer, counted):
    _, metrics, before, after = trained(optimizer)
    assert after < 0.5 * before
    assert counted in [int(value) for name, value in metrics.items() if name.endswith("/steps")]
    assert times_clipped(metrics) > 0


def test_a_norm_around_groups_is_the_root_of_the_squares_of_those_in_each():
    around = optax.chain(RULE, optax.partition({"hidden": optax.identity(), "out": optax.identity()}, label))
    within = optax.partition({"hidden": RULE, "out": RULE}, label)

    def measured(rule, gradients):
        updates, state = rule.update(gradients, rule.init(gradients))
        norms = [value for key, value in novoclip.metrics(state).items() if key.endswith("/norm")]
        return norms, [optax.tree.norm(updates[part]) for part in ("hidden", "out")]

    @jax.jit
    def both(weights):
        gradients = jax.tree.map(lambda leaf: 10 * leaf, jax.grad(loss_of)(weights))
        return measured(around, gradients), measured(within, gradients)

    ((whole,), lengths), (parts, equal) = jax.device_get(both(params()))
    np.testing.assert_allclose(whole, np.hypot(*parts), rtol=1e-6)
    np.testing.assert_allclose(lengths, np.array(parts) / whole, rtol=1e-5)  # together 1, in their old proportion
    np.testing.assert_allclose(equal, [1.0, 1.0], rtol=1e-5)


def test_lookahead_trains():
    pair = optax.LookaheadParams.init_synced(params())
    optimizer = optax.lookahead(chained(), sync_period=5, slow_step_size=0.5)

    def step(carry, _):
        pair, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(pair.fast), state, pair)
        return (optax.apply_updates(pair, updates), state), None

    @jax.jit
    def run(pair):
        (last, state), _ = jax.lax.scan(step, (pair, optimizer.init(pair)), length=STEPS)
        return novoclip.metrics(state), loss_of(pair.slow), loss_of(last.slow)

    metrics, before, after = run(pair)
    assert after < 0.5 * before
    assert int(metrics["clip/steps"]) == STEPS
    assert times_clipped(metrics) > 0


def test_schedule_free_trains():
    optimizer = optax.contrib.schedule_free(optax.chain(RULE, optax.sgd(0.3)), 0.3, b1=0.9)
    _, metrics, before, after = trained(
        optimizer, lambda weights, state: optax.contrib.schedule_free_eval_params(state, weights)
    )
    assert after < 0.5 * before
    assert times_clipped(metrics) > 0


def test_a_limit_on_a_schedule_of_inject_hyperparams_is_kept():
    schedule = optax.linear_schedule(2.0, 0.5, STEPS - 1)
    rule = optax.inject_hyperparams(novoclip.clip_by_global_norm, static_args=("shape", "nonfinite"))(max_norm=schedule)
    state, metrics, before, after = trained(optax.chain(rule, optax.adam(0.05)))
    assert after < 0.5 * before
    np.testing.assert_allclose(state[0].hyperparams["max_norm"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip/limit"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("opaque", [False, True])
def test_sam_trains(opaque):
    adversary = optax.chain(novoclip.normalize_by_norm(per="tree"), optax.sgd(0.05))
    optimizer = optax.contrib.sam(chained(), adversary, sync_period=2, opaque_mode=opaque)
    extra = {"grad_fn": lambda weights, _: jax.grad(loss_of)(weights)} if opaque else {}

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights, **extra)
        return (optax.apply_updates(weights, updates), state), None

    @jax.jit
    def run(weights):
        (last, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=STEPS)
        return loss_of(weights), loss_of(last)

    before, after = run(params())
    assert after < 0.5 * before


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(jnp.tanh(linen.Dense(8)(x)))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.05, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(jnp.tanh(self.hidden(x))))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_linen_train_state_trains(frozen):
    model, (x, y) = Linen(), data()
    optimizer = optax.chain(novoclip.agc(0.1), chained())

    def error(params):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    def step(state, _):
        return state.apply_gradients(grads=jax.grad(error)(state.params)), None

    @jax.jit
    def run(key):
        weights = model.init(key, x)
        first = TrainState.create(
            apply_fn=model.apply, params=flax.core.freeze(weights) if frozen else weights, tx=optimizer
        )
        last, _ = jax.lax.scan(step, first, length=STEPS)
        return last, novoclip.metrics(last.opt_state), error(first.params), error(last.params)

    state, metrics, before, after = run(jax.random.key(0))
    assert after < 0.5 * before
    assert int(state.step) == STEPS
    assert int(metrics["clip/steps"]) == STEPS
    assert times_clipped(metrics) > 0


def test_an_nnx_optimizer_trains():
    model, (x, y) = nnx.jit(lambda: Network(nnx.Rngs(0)))(), data()
    optimizer = nnx.Optimizer(model, optax.chain(novoclip.zclip(per="tensor"), chained()), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss, novoclip.metrics(optimizer.opt_state)

    losses, metrics = zip(*(step(model, optimizer) for _ in range(STEPS)), strict=True)
    assert losses[-1] < 0.5 * losses[0]
    assert int(metrics[-1]["clip/steps"]) == STEPS
    assert times_clipped(metrics[-1]) > 0


def test_units_of_equinox_layers_are_their_outputs():
    """Their weights are (out, in): the default would be wrong without a look at the module."""
    linear = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))
    model = {"equinox": eqx.filter(linear, eqx.is_array), "flax": linear.weight.T}

    def clipped(rule, model):
        return rule.update(jax.tree.map(lambda x: 10 * x, model), rule.init(model), model)[0]

    rules = novoclip.agc(0.1), novoclip.clip_by_norm(0.1, per="unit"), novoclip.centralize()
    in_torchs = novoclip.agc(0.1, per=novoclip.units("torch"))
    found, (expected, alone) = jax.jit(
        lambda model: (
            [clipped(rule, model) for rule in rules],
            [clipped(rule, model["equinox"]) for rule in (in_torchs, novoclip.agc(0.1))],
        )
    )(model)
    for updates in found:
        np.testing.assert_allclose(updates["equinox"].weight, np.asarray(updates["flax"]).T, rtol=1e-6)
    np.testing.assert_allclose(alone.weight, expected.weight, rtol=1e-6)


def test_units_of_a_module_of_ones_own_within_equinoxs_are_its_own():
    class Own(eqx.Module):
        kernel: jax.Array

        def __call__(self, x, *, key=None):
            return x @ self.kernel

    own = Own(jnp.ones((3, 4)))
    norms = novoclip.units("auto").norms(eqx.nn.Sequential([own]))
    assert [array.shape for array in norms.arrays] == [(1, 1, 4)]


def test_equinox_modules_with_functions_among_their_leaves_train():
    make = eqx.filter_jit(lambda key: eqx.nn.MLP(3, 1, 8, 1, activation=jnp.tanh, key=key))
    model, (x, y) = make(jax.random.key(0)), data()
    optimizer = optax.chain(novoclip.agc(0.1, per=novoclip.units("torch")), chained())
    state = jax.jit(optimizer.init)(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss, gradients = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return loss, eqx.apply_updates(model, updates), state

    losses = []
    for _ in range(STEPS):
        loss, model, state = step(model, state)
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]
    assert times_clipped(jax.jit(novoclip.metrics)(state)) > 0


def test_haiku_parameters_train():
    x, y = data()

    def network(x):
        return hk.nets.MLP([8, 1], activation=jnp.tanh)(x)

    model = hk.without_apply_rng(hk.transform(network))
    rule = novoclip.autoclip(50.0, per=novoclip.groups(lambda path, _: path.rpartition("/")[0]))
    optimizer = optax.chain(rule, chained())

    def error(weights):
        return jnp.mean((model.apply(weights, x) - y) ** 2)

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(error)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    @jax.jit
    def run(key):
        first = model.init(key, x)
        (last, state), _ = jax.lax.scan(step, (first, optimizer.init(first)), length=STEPS)
        return state, novoclip.metrics(state), error(first), error(last)

    state, metrics, before, after = run(jax.random.key(0))
    assert after < 0.5 * before
    assert state[0].norms.shape == (2,)
    assert times_clipped(metrics) > 0


@pytest.mark.parametrize("guarded", [False, True])
def test_optimistix_minimises(guarded):
    optimizer = novoclip.skip_spikes(chained()) if guarded else chained()
    solver = optx.OptaxMinimiser(optimizer, rtol=1e-8, atol=1e-8)
    solution = optx.minimise(lambda weights, _: loss_of(weights), solver, params(), max_steps=STEPS, throw=False)
    assert loss_of(solution.value) < 0.5 * loss_of(params())
