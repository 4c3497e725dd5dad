"""A state is never taken for that of another rule, nor for that of the same rule with other arguments."""

import copy
import itertools
import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.testing.subject import random_tree
from tests.cases import CASES

PARAMS = random_tree()
OWN = [case for case in CASES if case.entry.place not in ("shards", "examples")]


def abstract_state(transform):
    return jax.eval_shape(transform.init, PARAMS)


def accepts(transform, state):
    """Whether update takes a state."""
    reason = "state"
    try:
        jax.eval_shape(optax.with_extra_args_support(transform).update, PARAMS, state, PARAMS)
    except ValueError as error:
        reason = str(error)
    else:
        return True
    assert "state" in reason, state
    return False


def test_no_state_is_taken_for_that_of_another_rule():
    transforms = {case.name: case.transform() for case in OWN}
    states = {name: abstract_state(transform) for name, transform in transforms.items()}
    kinds = {name: type(state) for name, state in states.items()}
    taken = set()
    for name, transform in transforms.items():
        assert accepts(transform, states[name]), name
        others = (other for other in states if other != name and kinds[other] is kinds[name])
        taken |= {(name, other) for other in others if accepts(transform, states[other])}
    # What is left are options that no state depends on, and aliases.
    alike = {frozenset(part.partition("(")[0].removeprefix("scale_by_") for part in pair) for pair in taken}
    assert {tuple(sorted(names)) for names in alike if len(names) > 1} <= {
        ("clip_by_global_norm", "clip_by_norm"),
        ("centralize", "record"),
        ("adam", "adamw"),
        ("momentum", "sgd"),
        ("momentum", "trace"),
        ("sgd", "trace"),
    }


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (novoclip.autoclip(90.0, window=8), novoclip.autoclip(90.0, window=32)),
        (novoclip.autoclip(90.0, window=8, per="element"), novoclip.autoclip(90.0, window=16, per="element")),
        (novoclip.clip_by_deviation(window=8), novoclip.clip_by_deviation(window=32)),
        (
            novoclip.clip_by_running_quantile(0.9, form="geometric"),
            novoclip.clip_by_running_quantile(0.9, form="arithmetic"),
        ),
        (novoclip.clip_by_second_moment(3.0), novoclip.clip_by_second_moment(3.0, form="proportional")),
        (novoclip.zclip(warmup=5), novoclip.zclip(warmup=50)),
        (novoclip.adagc(warmup=5), novoclip.adagc(warmup=50)),
        (novoclip.zclip(per="tensor"), novoclip.zclip(per=novoclip.groups(lambda path, _: path))),
        (novoclip.zclip(per="tensor"), novoclip.zclip(per="tensor", norm="max")),
        (novoclip.clip_by_norm(1.0, per="tensor"), novoclip.clip_by_norm(1.0, per="tree")),
        (novoclip.autoclip(90.0, window=128), novoclip.clip_by_deviation(window=128)),
        (novoclip.momentum(0.1), novoclip.momentum(0.1, form="averaged")),
        (novoclip.novoclip(0.1), novoclip.novoclip(0.1, threshold="proportional")),
        (novoclip.amsgrad(0.1), novoclip.amsgrad(0.1, maximum="raw")),
        (novoclip.adam(0.1), novoclip.adam(0.1, clip=novoclip.zclip())),
        (novoclip.adam(0.1, clip=novoclip.autoclip(90.0)), novoclip.adam(0.1, clip=novoclip.zclip())),
        (
            novoclip.uclip(novoclip.clip_by_global_norm(1.0)),
            novoclip.clip21(novoclip.clip_by_global_norm(1.0)),
        ),
        (
            novoclip.clip_by_limit(
                "tree", novoclip.limits.tighter(novoclip.limits.constant(1.0), novoclip.limits.running_mean())
            ),
            novoclip.clip_by_limit(
                "tree", novoclip.limits.tighter(novoclip.limits.running_mean(), novoclip.limits.constant(1.0))
            ),
        ),
        (novoclip.clip_by_global_norm(1.0), optax.adam(0.1)),
        (novoclip.adam(0.1), optax.chain(optax.adam(0.1))),
    ],
)
def test_another_argument_that_the_state_depends_on_is_refused(rule, other):
    for one, its in ((rule, other), (other, rule)):
        if not isinstance(one.init(PARAMS), tuple) or hasattr(one.init(PARAMS), "origin"):
            with pytest.raises(ValueError, match="state"):
                jax.jit(one.update)(PARAMS, its.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (novoclip.autoclip(90.0), novoclip.autoclip(99.0, warmup=10, shape="drop")),
        (novoclip.clip_by_global_norm(1.0), novoclip.clip_by_norm(2.0, per="tree")),
        (novoclip.zclip(), novoclip.zclip(mode="mean", z_threshold=3.0)),
        (novoclip.adam(0.1), novoclip.adam(0.2, b1=0.5, weight_decay=0.1)),
    ],
)
def test_numbers_may_change_from_run_to_run(rule, other):
    assert accepts(other, rule.init(PARAMS))


def test_the_message_names_both():
    state = novoclip.autoclip(90.0, window=8).init(PARAMS)
    with pytest.raises(ValueError, match=r"made by autoclip\(window=8\) per tree.* constant per tree"):
        novoclip.clip_by_global_norm(1.0).update(PARAMS, state)


def test_shapes_are_checked_where_nothing_says_what_made_a_state():
    """As of a state of 0.1.0, or one read from a file."""
    for per in ("tree", "element"):
        old, new = (novoclip.autoclip(90.0, window=window, per=per) for window in (8, 32))
        with pytest.raises(ValueError, match=r"does not fit autoclip\(window=32\): .*history has shape"):
            new.update(PARAMS, old.init(PARAMS)._replace(origin=()))
        assert accepts(old, old.init(PARAMS)._replace(origin=()))
    state = novoclip.adagc().init(PARAMS)._replace(origin=())
    with pytest.raises(ValueError, match="does not fit zclip"):
        novoclip.zclip(per="tensor").update(PARAMS, state)


def test_an_origin_survives_what_states_go_through(tmp_path):
    rule = novoclip.autoclip(90.0, window=4)
    state = jax.jit(rule.update)(PARAMS, rule.init(PARAMS))[1]
    structure = jax.tree.structure(state)
    restored = [
        pickle.loads(pickle.dumps(state)),
        copy.deepcopy(state),
        jax.tree.map(jnp.copy, state),
        flax.serialization.from_bytes(rule.init(PARAMS), flax.serialization.to_bytes(state)),
    ]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored.append(checkpointer.restore(tmp_path / "state", jax.eval_shape(rule.init, PARAMS)))
    for other in restored:
        assert jax.tree.structure(other) == structure
        jax.tree.map(np.testing.assert_array_equal, other, state)
        assert accepts(rule, other)


def remembering(first):
    """A Limit of twice the median of a window that begins as NaN, given as such or computed."""

    def init(norms):
        missing = jnp.full((*norms.shape, 8), jnp.nan if first else jnp.inf, norms.dtype)
        return missing if first else missing - missing

    def update(norms, window, param_norms=None, *, step, **extra):
        rolled = jnp.roll(window, 1, -1).at[..., 0].set(norms)
        return 2 * jnp.nanmedian(rolled if first else window, axis=-1), rolled

    return novoclip.Limit(init, update)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize(("per", "first"), list(itertools.product(["tree", "tensor", "element"], [True, False])))
def test_a_state_may_begin_as_nan(per, first):
    rule = novoclip.clip_by_limit(per, remembering(first))
    update = jax.jit(rule.update)
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    state = rule.init(params)
    for size in [1.0] * 9 + [1000.0]:
        updates, state = update({"a": jnp.float32(size), "b": jnp.float32(0)}, state)
    np.testing.assert_allclose(updates["a"], 2.0, rtol=1e-6)


def keys(norms):
    return jax.random.split(jax.random.key(0), norms.shape)


def two_arrays(norms):
    return jnp.zeros((*norms.shape, 0)), jnp.zeros((*norms.shape, 2))


# A limit of 2, with states of several kinds: init, and the state after a step from norms and the state.
KINDS = {
    "keys": (keys, lambda norms, state: state),
    "integers": (lambda norms: jnp.zeros(norms.shape, jnp.int32), lambda norms, state: state + 1),
    "no axis": (two_arrays, lambda norms, state: (state[0], state[1] + norms[..., None])),
    "booleans": (lambda norms: jnp.zeros(norms.shape, bool), lambda norms, state: state | (norms > 1)),
}


@pytest.mark.parametrize("limit", [jnp.int32(2), jnp.float32(2), 2.0, np.float16(2)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_states_of_elements_may_be_of_any_kind(kind, limit):
    init, learn = KINDS[kind]
    rule = novoclip.clip_by_limit(
        "element", novoclip.Limit(init, lambda norms, state, sizes=None, **_: (limit, learn(norms, state)))
    )
    gradients = {"a": jnp.array([[1.0, -5.0]]), "empty": jnp.zeros((0, 3)), "scalar": jnp.array(3.0)}
    for update in (rule.update, jax.jit(rule.update)):
        updates, state = update(gradients, rule.init(gradients))
        np.testing.assert_array_equal(updates["a"], [[1, -2]])
        np.testing.assert_array_equal(updates["scalar"], 2)
        sizes = jax.tree.map(jnp.abs, gradients)
        expected = jax.tree.map(lambda size: learn(size, init(size)), sizes)
        for a, b in zip(jax.tree.leaves(state.limit_state), by_field(expected, sizes), strict=True):
            np.testing.assert_array_equal(*(jax.random.key_data(x) if kind == "keys" else x for x in (a, b)))


def by_field(expected, sizes):
    """Arrays of a state, field by field, from one state for each leaf."""
    states = jax.tree.structure(sizes).flatten_up_to(expected)
    return [array for field in zip(*map(jax.tree.leaves, states), strict=True) for array in field]


WRONG = {
    "another state": (lambda norms: (), lambda norms, state: (jnp.full_like(norms, 2), norms)),
    "in the wrong order": (lambda norms: (norms, norms), lambda norms, state: (state, norms)),
    "limits alone": (jnp.zeros_like, lambda norms, state: norms),
}


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("per", ["tree", "tensor", "unit", "element"])
@pytest.mark.parametrize("name", WRONG)
def test_a_limit_that_returns_something_else_is_named(name, per, jit):
    init, update = WRONG[name]

    def zeros(norms):
        return init(jnp.zeros(norms.shape, norms.dtype))

    limit = novoclip.Limit(zeros, lambda norms, state, sizes=None, **_: update(norms, state), name="of mine")
    rule = novoclip.clip_by_limit(per, limit)
    gradients = {"a": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"the Limit of mine must return \(limits, state\)"):
        (jax.jit(rule.update) if jit else rule.update)(gradients, rule.init(gradients))


@pytest.mark.parametrize("per", ["tree", "element"])
def test_a_state_that_becomes_nan_is_not_learned(per):
    def spoilt(norms, state, param_norms=None, *, step, **extra):
        return jnp.full_like(norms, 5.0), jnp.where(norms > 10, jnp.nan, state + norms)

    rule = novoclip.clip_by_limit(per, novoclip.Limit(lambda norms: jnp.zeros(norms.shape, norms.dtype), spoilt))
    state = rule.init(jnp.zeros(()))
    for size in (1.0, 2.0, 100.0, 4.0):
        updates, state = rule.update(jnp.float32(size), state)
    np.testing.assert_array_equal(state.limit_state, 7.0)
    np.testing.assert_array_equal(updates, 4.0)
