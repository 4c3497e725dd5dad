"""Pytrees as people have them: modules, static leaves, missing gradients, names with slashes, masks."""

import equinox as eqx
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import novoclip
from novoclip.paths import is_function, leaves_with_paths
from tests.cases import FIRST
from tests.steps import compiled

# Most rules never see the parameters: one of these is enough.
LOOK_AT_PARAMETERS = [
    case
    for case in FIRST
    if case.entry.needs_params
    or case.entry.kind in ("transform", "wrapper", "optimizer")
    or case.entry.name == "autoclip"
]


class Layer(eqx.Module):
    """As people write them: callable, with static leaves, and fields called as nnx calls its own."""

    kernel: jax.Array
    value: jax.Array
    activation: object
    name: str
    width: int

    def __call__(self, x):
        return self.activation(x @ self.kernel + self.value)


def layer():
    return Layer(jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([1.0, 2.0]), jax.nn.relu, "first", 2)


def arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


def test_a_module_is_a_pytree_and_not_a_function():
    mask = jax.tree.map(lambda x: x.ndim > 1, arrays(layer()))
    assert callable(mask)
    assert not is_function(mask)
    assert is_function(lambda params: params)
    assert is_function(layer().__call__)
    assert not is_function({})
    assert not is_function(None)
    assert not is_function(True)


def test_a_module_is_taken_as_a_mask_everywhere():
    params = arrays(layer())
    mask = jax.tree.map(lambda x: x.ndim > 1, params)
    zeros = jax.tree.map(np.zeros_like, params)
    decay = {"weight_decay": 0.5, "weight_decay_mask": mask}
    optimizers = (
        novoclip.adam(1.0, **decay),
        novoclip.novograd(1.0, 0.0, **decay),
        novoclip.stable_adamw(1.0, **decay),
    )
    for updates in jax.jit(lambda g, p: [o.update(g, o.init(p), p)[0] for o in optimizers])(zeros, params):
        np.testing.assert_allclose(updates.kernel, -0.5 * params.kernel, rtol=1e-6)
        np.testing.assert_array_equal(updates.value, 0)
    rule = compiled(novoclip.clip_by_global_norm(1.0, mask=mask))
    updates, state = rule.update(params, rule.init(params))
    np.testing.assert_allclose(state.norms, np.sqrt(26.0), rtol=1e-6)
    np.testing.assert_array_equal(updates.value, params.value)
    np.testing.assert_allclose(np.linalg.norm(updates.kernel), 1, rtol=1e-6)


def test_a_module_is_taken_as_stacked_sharded_and_specs():
    params = arrays(layer())
    stacked = jax.tree.map(lambda x: int(x.ndim > 1), params)
    np.testing.assert_allclose(jax.jit(novoclip.tensors(stacked=stacked).norms)(params), [5, 1, 5**0.5], rtol=1e-6)
    with_specs = novoclip.tensors(stacked=stacked, specs=jax.tree.map(lambda _: P(), params))
    np.testing.assert_allclose(jax.jit(with_specs.norms)(params)[:2], [5, 1], rtol=1e-6)
    sharded = jax.tree.map(lambda x: x.ndim > 1, params)
    rule = novoclip.across_shards(novoclip.clip_by_global_norm(1.0), axis_name="devices", sharded=sharded)
    norm = jax.jit(jax.vmap(lambda g: rule.update(g, rule.init(g))[1].norms, axis_name="devices"))
    twice = jax.tree.map(lambda x: np.stack([x, x]), params)
    np.testing.assert_allclose(norm(twice), np.sqrt(2 * 26 + 5), rtol=1e-6)


@pytest.mark.parametrize("case", LOOK_AT_PARAMETERS, ids=lambda case: case.name)
def test_leaves_without_a_gradient_do_not_matter(case):
    """Functions, strings, integers, and arrays that are not trained: beside them, the others move as they do alone."""
    transform = case.transform()
    trained = {"w": jnp.array([[3.0, 4.0], [0.5, 1.0]])}
    gradients = trained | {"frozen": None, "layer": jax.tree.map(lambda _: None, arrays(layer()))}

    @jax.jit
    def both(trained):
        model = trained | {"frozen": jnp.full(3, jnp.nan), "layer": layer()}
        alone, _ = transform.update(trained, transform.init(trained), trained)
        beside = gradients | trained
        return alone, *transform.update(beside, transform.init(beside), model)

    alone, updates, state = both(trained)
    np.testing.assert_allclose(updates["w"], alone["w"], rtol=2e-6)
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(transform.init, gradients))


def test_init_takes_a_whole_model():
    model = layer()
    descent = novoclip.adam(0.1, weight_decay=0.5, clip=novoclip.agc(0.1))
    gradients = arrays(model)
    models = (arrays(model), model)
    steps = jax.jit(lambda g: [descent.update(g, descent.init(each), each)[0] for each in models])
    expected, updates = steps(gradients)
    np.testing.assert_array_equal(updates.kernel, expected.kernel)


def test_gradients_of_another_structure_are_refused_by_name():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    for rule in (novoclip.adam(0.1), novoclip.agc(0.1), novoclip.adam(0.1, weight_decay=0.1)):
        state = rule.init(params)
        for gradients in ({"a": jnp.ones(2), "b": None}, {"a": jnp.ones(2)}):
            with pytest.raises(ValueError, match=r"gradients|structure"):
                rule.update(gradients, state, params)


def test_paths_keep_every_field_but_the_value_of_a_variable():
    class Attention(eqx.Module):
        query: jax.Array
        value: jax.Array

    tree = {"attn": Attention(*[jnp.ones(2)] * 2), "linear": nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)}
    paths = [str(path) for path, _ in leaves_with_paths(tree)]
    assert paths == ["attn/query", "attn/value", "linear/bias", "linear/kernel"]
    seen = []
    jax.eval_shape(novoclip.groups(lambda path, leaf: seen.append(path) or path).norms, tree)
    assert seen == paths


def test_leaves_that_share_a_path_are_kept_apart():
    six, two = np.ones((2, 3), np.float32), np.ones(2, np.float32)
    params = {"a": {"b": six}, "a/b": two}
    norms = jax.jit(novoclip.tensors(stacked={"a": {"b": 1}, "a/b": 0}).norms)
    np.testing.assert_allclose(np.square(norms(params)), [3, 3, 2], rtol=1e-6)
    deep = {"a": {"b": {"w": six}}, "a/b": {"w": two}}
    np.testing.assert_allclose(np.square(norms(deep)), [3, 3, 2], rtol=1e-6)
    rule = compiled(novoclip.clip_by_global_norm(1.0, mask={"a": {"b": True}, "a/b": False}))
    np.testing.assert_allclose(np.square(rule.update(params, rule.init(params))[1].norms), 6, rtol=1e-6)


MASKED = [
    (novoclip.clip_by_global_norm, {"max_norm": 1.0}),
    (novoclip.clip_by_norm, {"max_norm": 1.0}),
    (novoclip.clip_by_second_moment, {"threshold": 3.0, "form": "proportional", "per": "tensor"}),
    (novoclip.normalize_by_norm, {}),
    (novoclip.clip_to_band, {"min_norm": 0.01, "max_norm": 0.1}),
    (novoclip.delta_gclip, {}),
    (novoclip.autoclip, {"percentile": 90.0}),
    (novoclip.clip_by_running_quantile, {"quantile": 0.9}),
    (novoclip.clip_by_deviation, {}),
    (novoclip.zclip, {}),
    (novoclip.clip_by_running_mean, {}),
    (novoclip.adagc, {}),
    (novoclip.adaclip, {}),
    (novoclip.adagn, {}),
    (novoclip.agc, {}),
    (novoclip.clip_by_trust_ratio, {"learning_rate": 0.1}),
    (novoclip.clippy, {}),
    (novoclip.record, {}),
]


# The mask is outside of the rule; that each has the argument, and hands it on, is seen in init.
OFTEN = ("clip_by_global_norm", "clip_by_norm", "clip_by_second_moment", "autoclip", "agc", "clippy", "record", "adagn")


@pytest.mark.parametrize(("make", "arguments"), MASKED, ids=lambda part: getattr(part, "__name__", ""))
def test_every_rule_has_a_mask(make, arguments):
    params = {"head": jnp.ones(2), "trained": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="mask selects no leaf"):
        jax.eval_shape(make(**arguments, mask={"head": False, "trained": False}).init, params)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        pytest.param(make, arguments, id=make.__name__, marks=() if make.__name__ in OFTEN else pytest.mark.full)
        for make, arguments in MASKED
    ],
)
def test_masked_leaves_pass_unchanged_and_count_for_nothing(make, arguments):
    params = {"head": np.float32([1.0, 2.0]), "trained": np.float32([[1.0, 2.0], [0.5, 1.0]])}
    gradients = {"head": np.float32([1e6, np.nan]), "trained": np.float32([[3.0, 4.0], [0.5, 1.0]])}
    alone = make(**arguments)
    masks = ({"head": False, "trained": True}, lambda tree: {name: name == "trained" for name in tree})
    rules = [make(**arguments, mask=mask) for mask in masks]

    @jax.jit
    def steps(gradients, params):
        only, of_only = ({"trained": tree["trained"]} for tree in (gradients, params))
        masked = [rule.update(gradients, rule.init(params), params) for rule in rules]
        return alone.update(only, alone.init(of_only), of_only), masked

    (expected, state), masked = steps(gradients, params)
    for updates, after in masked:
        np.testing.assert_array_equal(updates["head"], gradients["head"])
        np.testing.assert_allclose(updates["trained"], expected["trained"], rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(after), jax.tree.leaves(state))
        assert int(after.nonfinite if not isinstance(after.nonfinite, tuple) else 0) == 0


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"a": False, "b": False}, ValueError, "selects no leaf, of 'a', 'b'"),
        (lambda tree: jax.tree.map(lambda _: False, tree), ValueError, "selects no leaf, of 'a', 'b'"),
        ({"a": True}, ValueError, "must be a prefix of the parameters, whose leaves are 'a', 'b'"),
        ({"a": "yes", "b": True}, TypeError, "pytree of booleans.* got 'yes' at 'a'"),
        ({"a": 1, "b": 0}, TypeError, "pytree of booleans.* got 1 at 'a'"),
        (lambda tree: None, ValueError, "must be a prefix"),
    ],
)
def test_masks_that_select_nothing_or_do_not_fit_are_refused(mask, error, message):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(error, match=f"mask .*{message}"):
        novoclip.clip_by_global_norm(1.0, mask=mask).init(params)
    descent = novoclip.adam(0.1, weight_decay=0.1, weight_decay_mask=mask)
    with pytest.raises(error, match=f"the mask of weight_decay .*{message}"):
        descent.update(params, descent.init(params), params)


def test_a_mask_goes_into_partition_and_multi_steps():
    params = {"a": np.float32([3.0, 4.0]), "b": np.float32([100.0])}
    rule = novoclip.clip_by_global_norm(1.0, mask={"a": True, "b": False})
    steps = compiled(optax.MultiSteps(optax.chain(rule, optax.sgd(1.0)), 2))
    state = steps.init(params)
    for _ in range(2):
        updates, state = steps.update(params, state, params)
    np.testing.assert_allclose(updates["a"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [-100.0], rtol=1e-6)


def test_no_traced_array_is_asked_where_it_lies(monkeypatch):
    """JAX answers with an error whose text it gathers from the whole program: tracing 148 leaves took 11 s."""

    def asked(_):
        pytest.fail("a traced array was asked for its sharding")

    monkeypatch.setattr(jax.core.Tracer, "sharding", property(asked))
    params = {"a": jnp.ones((5, 7)), "b": jnp.ones(7)}
    for rule in (novoclip.clip_by_second_moment(2.0, form="proportional"), novoclip.agc(0.1), novoclip.adam(0.1)):
        state = jax.eval_shape(rule.init, params)
        jax.jit(rule.update).trace(params, state, params)
        jax.jit(rule.init).trace(params)
