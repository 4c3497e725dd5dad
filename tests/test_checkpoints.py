"""A run that was killed goes on as if it had not been; a state fits other meshes, and later releases."""

import contextlib
import functools
import importlib.metadata
import json
import random
import re
import signal
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip import upgrade
from tests import interrupted, programs, worker
from tests.states import save
from tests.states.rules import RULES

UNFINISHED = "*.orbax-checkpoint-tmp*"


# The program of a step, which is the same in every run, is compiled by the first.
KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def start(folder, seed):
    kept = str(folder.parent / "programs")
    return programs.start("tests.interrupted", folder, seed, JAX_COMPILATION_CACHE_DIR=kept, **KEEP_ALL)


@contextlib.contextmanager
def running(folder, seed):
    """A run that is killed when the context ends, or when it hangs."""
    process = start(folder, seed)
    watch = threading.Timer(programs.HANG, process.kill)
    watch.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        watch.cancel()


def first_step(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("from "):
            return int(line.split()[1])
    pytest.fail("".join(lines))
    return None


def killed_at(folder, seed, step):
    """The step that a run began from, which was killed after it had done `step` of them."""
    with running(folder, seed) as process:
        first = first_step(process)
        next(line for line in process.stdout if line == f"step {first + step}\n")
    assert process.returncode == -signal.SIGKILL
    return first


def killed_during_a_save(folder, seed):
    """The same of a run that was killed when a save had begun and was not complete."""
    with running(folder, seed) as process:
        first = first_step(process)
        while not any(folder.glob(UNFINISHED)) and process.poll() is None:
            time.sleep(1e-4)
    assert process.returncode == -signal.SIGKILL
    return first


def saved_steps(folder):
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(seed, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    kill = random.Random(seed)
    assert killed_at(folder, 10 * seed, kill.randint(20, 35)) == 0
    before = max(saved_steps(folder))
    assert killed_during_a_save(folder, 10 * seed + 1) == before > 0
    before = max(saved_steps(folder))
    interrupted.train(folder, 10 * seed + 2)  # in a third process, which is this one
    assert capsys.readouterr().out.startswith(f"from {before}\n")
    expected = jax.jit(interrupted.start)()
    for number in range(1, interrupted.STEPS + 1):
        expected = interrupted.step(expected, number)
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == interrupted.STEPS
        found = manager.restore(interrupted.STEPS, args=ocp.args.StandardRestore(jax.eval_shape(interrupted.start)))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    skipped, inner = expected["state"].skipped, expected["state"].inner
    assert int(skipped) == 3
    assert all(int(rule.clipped) > 0 for rule in inner[:3])


RULE = worker.optimizer()


def shardings(params, mesh, specs):
    """Of parameters and state: what is like a parameter is split as the parameter is."""

    def place(spec):
        return NamedSharding(mesh, spec)

    state = jax.eval_shape(RULE.init, params)
    split = optax.tree_map_params(
        RULE, lambda _, spec: place(spec), state, specs, transform_non_params=lambda _: place(P())
    )
    return jax.tree.map(place, specs), split


def five_steps(run, batch):
    def step(run, size):
        params, state = run
        gradients = jax.grad(lambda params: worker.squared_error(params, batch) / 16)(params)
        updates, state = RULE.update(jax.tree.map(lambda leaf: size * leaf, gradients), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, run, np.float32([1, 2, 3, 1, 2]))[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Training on 2 x 4 devices: the folder of its state after ten steps, and its state after fifteen."""
    params, batch = worker.data()
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    places = shardings(params, mesh, worker.SPECS)
    placed = jax.device_put((params, jax.device_get(jax.jit(RULE.init)(params))), places)
    batch = jax.device_put(batch, tuple(NamedSharding(mesh, spec) for spec in worker.BATCH))
    train = jax.jit(five_steps, out_shardings=places)
    middle = train(train(placed, batch), batch)
    folder = tmp_path_factory.mktemp("mesh") / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, middle)
    return folder, middle, train(middle, batch)


@pytest.mark.parametrize("shape", [(4, 2), (1, 1)])
def test_a_state_goes_on_elsewhere_as_on_the_mesh_it_was_saved_on(shape, saved):
    folder, middle, expected = saved
    params, batch = worker.data()
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("data", "model"))
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: (params, RULE.init(params))),
        shardings(params, mesh, worker.SPECS),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder, like)
    jax.tree.map(np.testing.assert_array_equal, restored, middle)
    batch = jax.device_put(batch, tuple(NamedSharding(mesh, spec) for spec in worker.BATCH))
    found = jax.jit(five_steps)(restored, batch)
    assert found[0]["up"].sharding.device_set == set(devices.ravel())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)


FOLDERS = [path.parent for path in save.HERE.glob("*/structure.json")]
VERSIONS = sorted((folder.name for folder in FOLDERS), key=lambda name: [int(part) for part in name.split(".")])


# Of all units in one vector, in 0.1.0: what is remembered is now beside each leaf, and one number a leaf is shown.
REMEMBERED = re.compile(r"(?<=\.memory\.)(\w+)\.arrays\[\d+\]$")
SHOWN = re.compile(r"\.(norms|limits)$")
BY_UNIT = {"agc": "", "chain": "[1]", "record": "", "zclip": ""}


def as_in_0_1_0(name, leaves):
    """Arrays by their paths in a state as 0.1.0 had them, without what is shown of units."""
    found = {}
    for new, leaf in leaves.items():
        path = re.sub(r"\b(limit_state|moments)\b", "memory", new)
        path = re.sub(r"(?<=memory\.)trace\b", "velocity", path)
        path = re.sub(r"\b(norm|value)_limit_state\b", r"\1_memory", path)
        if not (SHOWN.search(path) and path.startswith(BY_UNIT.get(name, "none"))):
            found.setdefault(REMEMBERED.sub(r"\1", path), []).append(leaf)
    return {path: x[0] if len(x) == 1 else np.concatenate(list(map(np.ravel, x))) for path, x in found.items()}


def as_in(version, name, leaves):
    return as_in_0_1_0(name, leaves) if version == "0.1.0" else leaves


def assert_saved(arrays, kind, leaves, added=()):
    for path, leaf in leaves.items():
        if path in added:
            continue
        np.testing.assert_allclose(leaf, arrays[f"{kind} {path}"], rtol=1e-5, atol=1e-7, err_msg=f"{kind} {path}")


def nested(arrays, described):
    """A saved state as nested dicts, as a checkpoint restored without a target is."""
    tree = {}
    for path in described:
        *outer, last = re.findall(r"[^.\[\]']+", path)
        node = tree
        for name in outer:
            node = node.setdefault(name, {})
        node[last] = arrays[f"state {path}"]
    return tree


def test_a_history_of_all_units_is_given_to_their_leaves():
    rule = novoclip.autoclip(50.0, window=3, per="unit")
    params = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32), "c": np.ones((5, 3), np.float32)}
    state = jax.jit(rule.init)(params)
    history = np.arange(21.0).reshape(7, 3)
    saved = {name: np.array(5, np.int32) for name in ("steps", "clipped", "nonfinite", "nonfinite_in_a_row")}
    saved |= {"norms": np.ones(7), "limits": np.ones(7), "fraction": np.array(0.5)}
    saved["memory"] = {"history": history, "slot": np.full(7, 2, np.int32)}
    loaded = novoclip.upgrade_state(saved, state)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    of_a_and_c, of_b = loaded.limit_state.history.arrays
    np.testing.assert_array_equal(of_a_and_c, [history[None, :3], history[None, 4:]])
    np.testing.assert_array_equal(of_b, [history[3:4]])
    jax.jit(rule.update)(params, loaded)
    saved["memory"]["history"] = history[:6]
    with pytest.raises(ValueError, match="restored must be a state of this optimizer"):
        novoclip.upgrade_state(saved, state)


# The momentum of RMSprop is of whole steps since, learning rates included, as in Optax.
NOT_LOADED = {("0.1.0", "rmsprop")}


def load(version, name, structure, state):
    """A saved state in the form of another, and all that is saved of that rule."""
    with np.load(save.HERE / version / "states.npz") as arrays:
        saved = {key.removeprefix(f"{name}: "): arrays[key] for key in arrays if key.startswith(f"{name}: ")}
    return novoclip.upgrade_state(nested(saved, structure[name]), state), saved


@functools.cache
def structure_of(version):
    return json.loads((save.HERE / version / "structure.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("version", "name"), [(version, name) for version in VERSIONS for name in structure_of(version)]
)
def test_states_of_earlier_versions_load_and_take_the_next_step(version, name):
    structure = structure_of(version)
    first, step = save.stepping(name)
    if (version, name) in NOT_LOADED:
        with pytest.raises(ValueError, match="it lacks 'moments/inner/root"):
            load(version, name, structure, first)
        return
    old = as_in(version, name, save.leaves_by_path(first))
    described = {path: [str(x.dtype), list(x.shape)] for path, x in old.items()}
    # Counters that were added since begin at 0; all else is as it was.
    added = {path for path in described if path.split(".")[-1] in upgrade.ADDED} - set(structure[name])
    described = {path: kind for path, kind in described.items() if path not in added}
    assert described == {path: structure[name][path] for path in as_in(version, name, structure[name])}
    loaded, saved = load(version, name, structure, first)
    assert jax.tree.structure(loaded) == jax.tree.structure(first)
    updates, later = step(loaded, save.STEPS)
    assert_saved(saved, "updates", save.leaves_by_path(updates))
    assert_saved(saved, "later", as_in(version, name, save.leaves_by_path(later)), added)
    if version == VERSIONS[-1]:
        assert_saved(saved, "state", as_in(version, name, save.leaves_by_path(save.after_steps(first, step))), added)


def without(state, names):
    """A state of 0.1.0 as it was pickled: without the counters that were added since."""
    if not hasattr(state, "_replace"):
        return type(state)(without(part, names) for part in state) if isinstance(state, tuple) else state
    parts = {name: without(part, names) for name, part in state._asdict().items()}
    return state._replace(**parts | {name: () for name in names if name in parts})


def test_a_state_without_the_new_counters_goes_on_and_can_be_upgraded():
    rule = novoclip.skip_spikes(optax.chain(novoclip.clip_by_global_norm(1.0), novoclip.adam(0.1)))
    params, gradients = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, jnp.nan])}
    update = jax.jit(rule.update)
    _, state = update(params, rule.init(params), params)
    old = without(state, upgrade.ADDED)
    assert len(jax.tree.leaves(old)) == len(jax.tree.leaves(state)) - 10
    _, later = update(gradients, old, params)
    assert jax.tree.structure(later) == jax.tree.structure(old)
    assert int(later.nonfinite) == 1
    with pytest.raises(ValueError, match=r"does not count bad steps in a row, .*: convert it by upgrade_state"):
        novoclip.check(later)
    assert "this state does not count leaves" in novoclip.locate_nonfinite(later, params)
    upgraded = novoclip.upgrade_state(later, rule.init(params))
    _, upgraded = update(gradients, upgraded, params)
    assert novoclip.locate_nonfinite(upgraded, params).startswith("skip_spikes: w: not finite in 1 of 3 steps, last at")


def test_what_is_no_state_of_the_optimizer_is_not_upgraded():
    params = {"w": jnp.ones(2)}
    state = novoclip.skip_spikes(novoclip.adam(0.1)).init(params)
    other = novoclip.skip_spikes(novoclip.adam(0.1), novoclip.limits.deviation()).init(params)
    with pytest.raises(ValueError, match=r"it lacks 'norm_limit_state/history', .*, and has 'norm_limit_state/mean'"):
        novoclip.upgrade_state(state, other)
    with pytest.raises(ValueError, match=r"shape \(2,\) at 'inner/moments/mu/w', and this optimizer \(3,\)"):
        novoclip.upgrade_state(state, jax.tree.map(lambda x: jnp.ones(3) if x.shape == (2,) else x, state))


def test_the_states_of_this_version_are_saved():
    assert set(structure_of(VERSIONS[-1])) == set(RULES)
    assert importlib.metadata.version("novoclip") == VERSIONS[-1], "run `python -m tests.states.save`"
