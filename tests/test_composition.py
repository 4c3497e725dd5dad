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
    x = jnp.linspace(-2.0, 2.0, 32)[:, None] * jnp.array([1.0, 0.5, -1.0])
    return x, jnp.sin(x[:, :1])


def params():
    first, second = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"w": jax.random.normal(first, (3, 8)), "b": jnp.zeros(8)},
        "out": {"w": jax.random.normal(second, (8, 1)), "b": jnp.zeros(1)},
    }


def loss_of(params):
    x, y = data()
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] + params["out"]["b"] - y) ** 2)


def trained(optimizer, evaluated=lambda params, state: params, start=None):
    """The last state, and the losses before and after STEPS steps in one scan."""
    optimizer = optax.with_extra_args_support(optimizer)
    start = params() if start is None else start

    def step(carry, _):
        weights, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights)
        updates, state = optimizer.update(gradients, state, weights, value=loss)
        return (optax.apply_updates(weights, updates), state), None

    weights, state = jax.jit(lambda run: jax.lax.scan(step, run, length=STEPS)[0])((start, optimizer.init(start)))
    return state, loss_of(evaluated(start, optimizer.init(start))), loss_of(evaluated(weights, state))


def times_clipped(state):
    return max(int(value) for name, value in novoclip.metrics(state).items() if name.endswith("/clipped"))


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
    state, before, after = trained(optimizer)
    assert after < 0.5 * before
    steps = [int(value) for name, value in novoclip.metrics(state).items() if name.endswith("/steps")]
    assert counted in steps
    assert times_clipped(state) > 0


def test_a_norm_around_groups_is_the_root_of_the_squares_of_those_in_each():
    around = optax.chain(RULE, optax.partition({"hidden": optax.identity(), "out": optax.identity()}, label))
    within = optax.partition({"hidden": RULE, "out": RULE}, label)
    gradients = jax.tree.map(lambda leaf: 10 * leaf, jax.grad(loss_of)(params()))
    found = {}
    for name, rule in (("around", around), ("within", within)):
        updates, state = jax.jit(rule.update)(gradients, rule.init(gradients))
        measured = [float(v) for key, v in novoclip.metrics(state).items() if key.endswith("/norm")]
        found[name] = measured, [float(optax.tree.norm(updates[part])) for part in ("hidden", "out")]
    (whole,), lengths = found["around"]
    parts, equal = found["within"]
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

    (last, state), _ = jax.jit(lambda run: jax.lax.scan(step, run, length=STEPS))((pair, optimizer.init(pair)))
    assert loss_of(last.slow) < 0.5 * loss_of(pair.slow)
    assert int(novoclip.metrics(state)["clip/steps"]) == STEPS
    assert times_clipped(state) > 0


def test_schedule_free_trains():
    optimizer = optax.contrib.schedule_free(optax.chain(RULE, optax.sgd(0.3)), 0.3, b1=0.9)
    state, before, after = trained(
        optimizer, lambda weights, state: optax.contrib.schedule_free_eval_params(state, weights)
    )
    assert after < 0.5 * before
    assert times_clipped(state) > 0


def test_a_limit_on_a_schedule_of_inject_hyperparams_is_kept():
    schedule = optax.linear_schedule(2.0, 0.5, STEPS - 1)
    rule = optax.inject_hyperparams(novoclip.clip_by_global_norm, static_args=("shape", "nonfinite"))(max_norm=schedule)
    state, before, after = trained(optax.chain(rule, optax.adam(0.05)))
    assert after < 0.5 * before
    np.testing.assert_allclose(state[0].hyperparams["max_norm"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(novoclip.metrics(state)["clip/limit"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("opaque", [False, True])
def test_sam_trains(opaque):
    adversary = optax.chain(novoclip.normalize_by_norm(per="tree"), optax.sgd(0.05))
    optimizer = optax.contrib.sam(chained(), adversary, sync_period=2, opaque_mode=opaque)
    weights = params()
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state):
        extra = {"grad_fn": lambda weights, _: jax.grad(loss_of)(weights)} if opaque else {}
        updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights, **extra)
        return optax.apply_updates(weights, updates), state

    for _ in range(STEPS):
        weights, state = step(weights, state)
    assert loss_of(weights) < 0.5 * loss_of(params())


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
    weights = model.init(jax.random.key(0), x)
    optimizer = optax.chain(novoclip.agc(0.1), chained())
    state = TrainState.create(
        apply_fn=model.apply, params=flax.core.freeze(weights) if frozen else weights, tx=optimizer
    )

    def error(params):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(error)(state.params))

    first = error(state.params)
    for _ in range(STEPS):
        state = step(state)
    assert error(state.params) < 0.5 * first
    assert int(novoclip.metrics(state.opt_state)["clip/steps"]) == STEPS
    assert times_clipped(state.opt_state) > 0


def test_an_nnx_optimizer_trains():
    model, (x, y) = Network(nnx.Rngs(0)), data()
    optimizer = nnx.Optimizer(model, optax.chain(novoclip.zclip(per="tensor"), chained()), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [step(model, optimizer) for _ in range(STEPS)]
    assert losses[-1] < 0.5 * losses[0]
    assert int(novoclip.metrics(optimizer.opt_state)["clip/steps"]) == STEPS
    assert times_clipped(optimizer.opt_state) > 0


def test_units_of_equinox_layers_are_their_outputs():
    """Their weights are (out, in): the default would be wrong without a look at the module."""
    linear = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))
    model = {"equinox": eqx.filter(linear, eqx.is_array), "flax": linear.weight.T}
    gradients = jax.tree.map(lambda x: 10 * x, model)
    for rule in (novoclip.agc(0.1), novoclip.clip_by_norm(0.1, per="unit"), novoclip.centralize()):
        updates, _ = rule.update(gradients, rule.init(model), model)
        np.testing.assert_allclose(updates["equinox"].weight, updates["flax"].T, rtol=1e-6)
    in_torchs = novoclip.agc(0.1, per=novoclip.units("torch"))
    expected, _ = in_torchs.update(gradients["equinox"], in_torchs.init(model["equinox"]), model["equinox"])
    found, _ = novoclip.agc(0.1).update(
        gradients["equinox"], novoclip.agc(0.1).init(model["equinox"]), model["equinox"]
    )
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-6)


def test_units_of_a_module_of_ones_own_within_equinoxs_are_its_own():
    class Own(eqx.Module):
        kernel: jax.Array

        def __call__(self, x, *, key=None):
            return x @ self.kernel

    own = Own(jnp.ones((3, 4)))
    norms = novoclip.units("auto").norms(eqx.nn.Sequential([own]))
    assert [array.shape for array in norms.arrays] == [(1, 1, 4)]


def test_equinox_modules_with_functions_among_their_leaves_train():
    model, (x, y) = eqx.nn.MLP(3, 1, 8, 1, activation=jnp.tanh, key=jax.random.key(0)), data()
    optimizer = optax.chain(novoclip.agc(0.1, per=novoclip.units("torch")), chained())
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

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
    assert times_clipped(state) > 0


def test_haiku_parameters_train():
    x, y = data()

    def network(x):
        return hk.nets.MLP([8, 1], activation=jnp.tanh)(x)

    model = hk.without_apply_rng(hk.transform(network))
    first = weights = model.init(jax.random.key(0), x)
    rule = novoclip.autoclip(50.0, per=novoclip.groups(lambda path, _: path.rpartition("/")[0]))
    optimizer = optax.chain(rule, chained())
    state = optimizer.init(weights)

    def error(weights):
        return jnp.mean((model.apply(weights, x) - y) ** 2)

    @jax.jit
    def step(weights, state):
        updates, state = optimizer.update(jax.grad(error)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    for _ in range(STEPS):
        weights, state = step(weights, state)
    assert error(weights) < 0.5 * error(first)
    assert state[0].norms.shape == (2,)
    assert times_clipped(state) > 0


@pytest.mark.parametrize("guarded", [False, True])
def test_optimistix_minimises(guarded):
    optimizer = novoclip.skip_spikes(chained()) if guarded else chained()
    solver = optx.OptaxMinimiser(optimizer, rtol=1e-8, atol=1e-8)
    solution = optx.minimise(lambda weights, _: loss_of(weights), solver, params(), max_steps=STEPS, throw=False)
    assert loss_of(solution.value) < 0.5 * loss_of(params())
