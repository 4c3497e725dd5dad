"""Written metrics come back, from each target, and after a restart no step is missing or there twice."""

from __future__ import annotations

import csv
import functools
import importlib
import json
import math
from pathlib import Path
import sqlite3
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.writers import writer

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = pytest.mark.parametrize("name", ["run.csv", "run.jsonl"])


def rows_of(path):
    """Rows as dicts of numbers; an empty cell is no entry."""
    lines = path.read_text().splitlines()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in lines]
    return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]


def write(target, steps, **metrics):
    with writer(target) as out:
        for step in steps:
            out.write(step, metrics or {"a": step})


@FILES
def test_values_come_back_exactly(name, tmp_path):
    values = {
        "clip/norm": jnp.float32(0.1),
        "low": jnp.bfloat16(3.0),
        "column, with comma": np.float64(1 / 3),
        "count": jnp.int32(2**31 - 1),
        "flag": np.array([True]),
        "nan": jnp.nan,
        "inf": jnp.array([[-jnp.inf]]),
        "int": 7,
    }
    path = tmp_path / "new" / name
    write(path, [3], **values)
    (row,) = rows_of(path)
    assert list(row) == ["step", *values]
    expected = [3, np.float64(np.float32(0.1)), 3, 1 / 3, 2**31 - 1, 1, math.nan, -math.inf, 7]
    np.testing.assert_array_equal(list(row.values()), expected)


def test_what_is_not_finite_is_written_as_python_reads_it(tmp_path):
    for name in ("run.csv", "run.jsonl"):
        write(tmp_path / name, [0], a=math.nan, b=math.inf, c=-math.inf)
    assert (tmp_path / "run.csv").read_text() == "step,a,b,c\n0,nan,inf,-inf\n"
    assert (tmp_path / "run.jsonl").read_text() == '{"step": 0, "a": NaN, "b": Infinity, "c": -Infinity}\n'


@FILES
@pytest.mark.parametrize("every", [1, 3])
def test_a_row_is_written_when_a_later_one_comes(name, every, tmp_path):
    path = tmp_path / name
    with writer(path, every=every) as out:
        for step in range(7):
            out.write(step, {"a": jnp.float32(step)})
            assert (len(rows_of(path)) if path.exists() else 0) == step // every * every
        out.flush()
        assert len(rows_of(path)) == 7
    assert [row["step"] for row in rows_of(path)] == list(range(7))


def test_write_does_not_wait_for_the_step(tmp_path):
    # JAX starts small programs on the CPU at once and waits for them: this one is large.
    slow = jax.jit(lambda x: 6 + 0 * jnp.sum(jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x @ x), x)))
    slow = slow.lower(jnp.zeros((700, 700))).compile()
    with writer(tmp_path / "run.csv") as out:
        out.write(0, {"a": jnp.float32(5)})  # compiles
        out.write(1, {"a": jnp.float32(5)})
        value = slow(jnp.zeros((700, 700)))
        out.write(2, {"a": value})
        assert not value.is_ready()
    assert [row["a"] for row in rows_of(tmp_path / "run.csv")] == [5, 5, 6]


def test_metrics_of_donated_states_are_written(tmp_path):
    optimizer = novoclip.protect(optax.sgd(1.0))

    @functools.partial(jax.jit, donate_argnums=0)
    def step_on(state, gradient):
        return optimizer.update(gradient, state, gradient, value=jnp.sum(gradient))[1]

    state = optimizer.init(jnp.ones(3))
    mutable = np.zeros(())
    with writer(tmp_path / "run.csv") as out:
        for step in range(4):
            state = step_on(state, jnp.full(3, jnp.nan if step == 2 else 1.0))
            mutable[...] = step
            out.write(step, {"mutable": mutable} | novoclip.metrics(state))
    rows = rows_of(tmp_path / "run.csv")
    assert [row["spikes/skipped"] for row in rows] == [0, 0, 1, 1]
    assert [row["mutable"] for row in rows] == [0, 1, 2, 3]


def test_no_transfer_is_implicit(tmp_path):
    values = {"a": jnp.float32(1), "b": jnp.int32(2)}
    with jax.transfer_guard("disallow"):
        write(tmp_path / "run.jsonl", [0], **values)
    assert rows_of(tmp_path / "run.jsonl") == [{"step": 0, "a": 1, "b": 2}]


def test_metrics_of_different_devices_are_written(tmp_path):
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    everywhere = jax.device_put(2.0, NamedSharding(mesh, P()))
    write(tmp_path / "run.jsonl", [0], a=everywhere, b=jax.device_put(3.0, jax.devices()[-1]), c=jnp.float32(4))
    assert rows_of(tmp_path / "run.jsonl") == [{"step": 0, "a": 2, "b": 3, "c": 4}]


@FILES
def test_a_later_column_keeps_the_rows_before(name, tmp_path):
    path = tmp_path / name
    with writer(path) as out:
        out.write(0, {"a": 1})
        out.write(1, {"b": 2, "a": 3})
        out.write(2, {"c": 4})
    write(path, [3], d=5, a=6)
    assert rows_of(path) == [
        {"step": 0, "a": 1},
        {"step": 1, "a": 3, "b": 2},
        {"step": 2, "c": 4},
        {"step": 3, "a": 6, "d": 5},
    ]
    if name == "run.csv":
        assert path.read_text().splitlines()[0] == "step,a,b,c,d"


@FILES
def test_a_resumed_file_has_each_step_once_and_no_part_of_a_row(name, tmp_path):
    path = tmp_path / name
    write(path, range(0, 100, 10))
    with path.open("a") as file:
        file.write('{"step": 1' if name == "run.jsonl" else "1")  # by a process that was killed
    write(path, range(55, 75, 10), a=-1)
    expected = [(step, step) for step in range(0, 55, 10)] + [(55, -1), (65, -1)]
    assert [(row["step"], row["a"]) for row in rows_of(path)] == expected
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_run_resumed_from_a_checkpoint_continues_the_file(tmp_path):
    """The files of an uninterrupted run and one that lost its last steps are the same, byte by byte."""
    optimizer = novoclip.protect(optax.adamw(1e-2))

    @jax.jit
    def train_step(run, step):
        x = jax.random.normal(jax.random.key(step), (8, 3))
        y = jnp.where(step == 4, jnp.nan, 1.0)
        loss, gradients = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(run["params"])
        updates, state = optimizer.update(gradients, run["state"], run["params"], value=loss)
        run = {"params": optax.apply_updates(run["params"], updates), "state": state}
        return run, {"loss": loss} | novoclip.metrics(state)

    def train(folder, begin, end):
        run = {"params": jnp.ones(3)}
        run["state"] = optimizer.init(run["params"])
        with ocp.StandardCheckpointer() as checkpointer:
            if begin:
                run = checkpointer.restore(folder / str(begin), jax.eval_shape(lambda: run))
            with writer(folder / "run.csv", every=3) as table, writer(folder / "run.jsonl") as lines:
                for step in range(begin, end):
                    run, metrics = train_step(run, step)
                    table.write(step, metrics)
                    lines.write(step, metrics)
                    if step + 1 == 5:
                        table.flush()
                        lines.flush()
                        checkpointer.save(folder / "5", run)

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(whole, 0, 10)
    train(resumed, 0, 8)
    assert [row["step"] for row in rows_of(resumed / "run.csv")] == list(range(8))
    train(resumed, 5, 10)
    for name in ("run.csv", "run.jsonl"):
        rows = rows_of(resumed / name)
        assert [row["step"] for row in rows] == list(range(10))
        assert rows[-1]["spikes/skipped"] == 1
        assert (resumed / name).read_text() == (whole / name).read_text()


def test_a_failed_replacement_leaves_the_file_and_is_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "run.csv"
    write(path, range(3))
    before = path.read_text()
    out = writer(path)
    out.write(3, {"a": 3})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            out.write(4, {"a": 4})
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]
    out.write(4, {"a": 4})
    out.close()
    assert [row["step"] for row in rows_of(path)] == list(range(5))


@FILES
def test_a_failed_append_leaves_no_part_of_a_row(name, tmp_path):
    """The system lets the file grow by a part of a row, then refuses."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    path = tmp_path / name
    out = writer(path)
    out.write(0, {"a": 1})
    out.write(1, {"a": 2})
    before = path.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 2, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            out.write(2, {"a": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == before
    out.close()
    assert [row["step"] for row in rows_of(path)] == [0, 1]


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ({"a/b": jnp.ones((2, 3))}, ValueError, r"'a/b' must be a scalar, got an array of shape \(2, 3\)"),
        ({"a/b": np.ones(0)}, ValueError, r"'a/b' .* shape \(0,\)"),
        ({"a": [[1], [2, 3]]}, ValueError, "'a' must be a scalar, got list"),
        ({"a": {"b": 1}}, ValueError, r"'a' must be a real number, got dict of shape \(\) .* flat mapping"),
        ({"a": "1"}, ValueError, "'a' must be a real number, got str"),
        ({"a": 1j}, ValueError, "'a' must be a real number, got complex"),
        ({"a": jax.random.key(0)}, ValueError, "'a' must be a real number"),
        ({"step": 1}, ValueError, "no metric may be called 'step'"),
        ({1: 1}, TypeError, "names of metrics must be strings, got 1"),
    ],
)
def test_what_is_no_scalar_is_refused_and_nothing_is_written(metrics, error, message, tmp_path):
    with writer(tmp_path / "run.csv") as out, pytest.raises(error, match=message):
        out.write(0, {"before": 1} | metrics)
    assert not list(tmp_path.iterdir())


def test_traced_metrics_are_refused(tmp_path):
    with writer(tmp_path / "run.csv") as out, pytest.raises(TypeError, match="'a' is traced: call write outside"):
        jax.jit(lambda x: out.write(0, {"a": x}))(1.0)


@pytest.mark.parametrize("step", [1, 2])
def test_steps_do_not_go_back(step, tmp_path):
    with writer(tmp_path / "run.csv") as out:
        out.write(2, {"a": 2})
        with pytest.raises(ValueError, match=f"not go back: got {step} after 2"):
            out.write(step, {"a": 1})
        out.write(np.int64(5), {"a": 5})
        for other in (jnp.int32(7), 7.0):
            with pytest.raises(TypeError, match="step must be an integer"):
                out.write(other, {"a": 1})
    assert [row["step"] for row in rows_of(tmp_path / "run.csv")] == [2, 5]
    out.close()
    with pytest.raises(ValueError, match="the writer is closed"):
        out.write(6, {"a": 6})


def test_targets_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "other.jsonl").write_text("[1]\n")
    for target, message in {
        tmp_path / "notes.txt": "ends in neither .csv nor .jsonl",
        tmp_path / "other.csv": "has no column 'step'",
        tmp_path / "other.jsonl": "row 1, has no integer 'step'",
        "gs://bucket/run.csv": "must be on a local disk",
    }.items():
        with pytest.raises(ValueError, match=message):
            writer(target)
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got 0"):
        writer(tmp_path / "run.csv", every=0)
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_one_process_writes_to_a_path_and_each_to_its_object(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = Wandb()
    for target in (tmp_path / "run.csv", tmp_path / "run.jsonl", tmp_path / "events", run):
        write(target, [0])
    assert not list(tmp_path.iterdir())
    assert run.rows == {0: {"a": 0}}


# Stand-ins: each has the signature of its library's method, and keeps what it is given.
class Kept:
    def __init__(self):
        self.rows = {}
        self.flushed = 0

    def keep(self, step, values):
        assert type(step) is int
        assert all(type(value) in (int, float) for value in values.values())
        self.rows.setdefault(step, {}).update(values)

    def flush(self):
        self.flushed += 1

    def close(self):
        pytest.fail("the writer closed what it did not open")


class TensorboardX(Kept):
    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, display_name="", summary_description=""):
        self.keep(global_step, {tag: scalar_value})


class Torch(Kept):
    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False):
        self.keep(global_step, {tag: scalar_value})


class Clu(Kept):
    def write_scalars(self, step, scalars):
        self.keep(step, scalars)


class Flax(Kept):
    def scalar(self, tag, value, step):
        self.keep(step, {tag: value})


class Wandb(Kept):
    def log(self, data, step=None, commit=None):
        self.keep(step, data)


class Trackio(Kept):
    def log(self, metrics, step=None):
        self.keep(step, metrics)


class Mlflow(Kept):
    def log_metrics(
        self, metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None
    ):
        self.keep(step, metrics)


class Lightning(Kept):
    def log_metrics(self, metrics, step=None):
        self.keep(step, metrics)

    # A module or Fabric has a `log` of another kind.
    def log(self, name, value, step=None):
        pytest.fail("not what takes a row")


@pytest.mark.parametrize("logger", [TensorboardX, Torch, Clu, Flax, Wandb, Trackio, Mlflow, Lightning])
def test_a_logger_gets_each_row_and_stays_open(logger):
    target = logger()
    with writer(target) as out:
        for step in range(3):
            out.write(step, {"clip/norm": jnp.float32(step / 2), "spikes/skipped": jnp.int32(step)})
            assert len(target.rows) == step
    assert target.rows == {step: {"clip/norm": step / 2, "spikes/skipped": step} for step in range(3)}
    assert target.flushed == 1


class NamesOnly:
    """`logging.Logger`, `lightning.Fabric`: the method's name alone says nothing."""

    def log(self, level, msg, *args, **kwargs):
        pytest.fail("this is no metric")

    def write_scalars(self, values):
        pytest.fail("nor this")


@pytest.mark.parametrize("target", [None, 3, math, np, NamesOnly(), TensorboardX])
def test_what_cannot_log_is_refused_with_what_can(target):
    with pytest.raises(TypeError, match=r"\.csv or \.jsonl.*folder.*write_scalars.*log_metrics.*add_scalar.*scalar\("):
        writer(target)


def test_a_logger_that_fails_gets_the_row_again():
    class Fails(Trackio):
        fail = True

        def log(self, metrics, step=None):
            if step == 1 and self.fail:
                msg = "no network"
                raise ConnectionError(msg)
            super().log(metrics, step)

    target = Fails()
    out = writer(target, every=3)
    for step in range(3):
        out.write(step, {"a": step})
    with pytest.raises(ConnectionError):
        out.flush()
    target.fail = False
    out.close()
    assert target.rows == {step: {"a": step} for step in range(3)}


def test_a_folder_without_tensorboardx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'novoclip\[writers\]'"):
        writer(tmp_path)


def scalars(folder, *names):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [[(event.step, event.value) for event in events.Scalars(name)] for name in names]


def test_tensorboard_reads_the_folder_and_after_a_restart_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "run"
    for steps in (range(5), range(3, 6)):
        with writer(folder) as out:
            for step in steps:
                out.write(step, {"clip/norm": jnp.float32(step + steps.start / 8), "spikes/skipped": step})
    norms, skipped = scalars(folder, "clip/norm", "spikes/skipped")
    assert norms == [(0, 0), (1, 1), (2, 2), (3, 3.375), (4, 4.375), (5, 5.375)]
    assert skipped == [(step, step) for step in range(6)]


def test_a_summary_writer_of_tensorboardx_is_used_and_stays_open(tmp_path):
    library = pytest.importorskip("tensorboardX")

    with library.SummaryWriter(str(tmp_path)) as target:
        write(target, range(2))
        target.add_scalar("b", 1.0, 7)
    assert scalars(tmp_path, "a", "b") == [[(0, 0), (1, 1)], [(7, 1)]]


def test_wandb_gets_the_last_row(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    monkeypatch.setenv("WANDB_SILENT", "true")
    out = writer(wandb)  # before the run is begun
    with wandb.init(mode="offline", dir=str(tmp_path), project="novoclip") as run:
        out.write(0, {"clip/norm": 1.5})
        out.close()
        write(run, [1, 2])
        assert run.step == 2
        assert run.summary["clip/norm"] == 1.5
        assert run.summary["a"] == 1  # wandb holds a step until the next


def test_trackio_keeps_each_row(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")

    trackio.init(project="novoclip", name="run", auto_log_cpu=False)
    write(trackio, range(3))
    trackio.finish()
    connection = sqlite3.connect(next(tmp_path.glob("*.db")))
    rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    connection.close()
    assert [(step, json.loads(metrics)) for step, metrics in rows] == [(step, {"a": step}) for step in range(3)]


def test_mlflow_keeps_each_row(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")

    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("novoclip")
    with mlflow.start_run() as run:
        write(mlflow, range(3))
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "a")
    assert [(metric.step, metric.value) for metric in history] == [(step, step) for step in range(3)]


@pytest.mark.parametrize("name", ["monitor_linen", "monitor_nnx", "monitor_equinox"])
def test_the_examples_write_each_step(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "norms.csv")])
    importlib.import_module(name).main()
    assert capsys.readouterr().out == "step 29: spikes/skipped 1\n"
    rows = rows_of(tmp_path / "norms.csv")
    assert [row["step"] for row in rows] == list(range(30))
    assert math.isnan(rows[20]["loss"])
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("name", ["log.json", "log.txt", "norms.jsonl.gz"])
def test_a_path_that_looks_like_a_file_is_no_folder(tmp_path, name):
    with pytest.raises(ValueError, match="looks like a file"):
        writer(tmp_path / name)
    assert not list(tmp_path.iterdir())
