"""Databases and folders of trackio and MLflow: without steps, with runs of one name, with second passes, damaged."""

from contextlib import closing
import json
import sqlite3

import numpy as np
import pytest

from novoclip.records import read_record
from tests.test_records import LOSSES, NORMS, ROWS, STEPS, error_of, write


def trackio(path, rows):
    """Write a database as trackio does: rows of (run_id, run_name, step, metrics)."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id, run_name, step, metrics)")
        rows = [(*row[:3], json.dumps(row[3]) if isinstance(row[3], dict) else row[3]) for row in rows]
        connection.executemany("INSERT INTO metrics (run_id, run_name, step, metrics) VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    return path


def mlflow_database(path, rows):
    """Write a database as MLflow does: rows of (key, value, timestamp, step)."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE metrics (run_uuid, key, value, timestamp, step, is_nan)")
        connection.executemany("INSERT INTO metrics VALUES ('a', ?, ?, ?, ?, 0)", rows)
        connection.commit()
    return path


def mlflow_folder(path, **metrics):
    """Write a folder as MLflow does: for each metric rows of (timestamp, value, step), or the text of its file."""
    (path / "metrics").mkdir(parents=True)
    for name, rows in metrics.items():
        lines = rows if isinstance(rows, bytes) else "".join(f"{t} {v} {s}\n" for t, v, s in rows).encode()
        (path / "metrics" / name).write_bytes(lines)
    return path


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_mlflow_without_steps_counts_the_rows_by_time(tmp_path, kind):
    times = 1000 * np.arange(1, 21)
    # The loss of every second row, a millisecond after its norm.
    pairs = {"grad_norm": (times, NORMS), "loss": (times[::2] + 1, LOSSES[::2])}
    if kind == "folder":
        series = {name: [(t, v, 0) for t, v in zip(*pair, strict=True)] for name, pair in pairs.items()}
        source = mlflow_folder(tmp_path / "run", **series)
    else:
        rows = [(name, v, int(t), 0) for name, pair in pairs.items() for t, v in zip(*pair, strict=True)]
        source = mlflow_database(tmp_path / "a.db", rows)
    record = read_record(source)
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.losses, np.where(ROWS % 2, np.nan, LOSSES))
    np.testing.assert_array_equal(record.steps, ROWS)
    assert record.stride == 1
    assert "all 20 rows with a norm have the step 0 in 'step', which is therefore not used" in record.notes


def test_a_step_that_never_changes_gives_way_to_one_that_does(tmp_path):
    record = read_record({"step": np.zeros(20), "global_step": STEPS, "grad_norm": NORMS})
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.steps, STEPS)
    # MLflow without step=, where the step was logged as a metric.
    series = {"step": [(t, s, 0) for t, s in enumerate(STEPS)], "grad_norm": [(t, v, 0) for t, v in enumerate(NORMS)]}
    record = read_record(mlflow_folder(tmp_path / "run", **series))
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.steps, STEPS)


def test_a_metric_called_step_does_not_replace_the_step_of_the_tool(tmp_path):
    rows = [("a", "a", int(s), {"Step": 7, "step": 3, "grad_norm": n}) for s, n in zip(STEPS, NORMS, strict=True)]
    times = {"grad_norm": [(s, n, s) for s, n in zip(STEPS, NORMS, strict=True)], "step": [(s, 3, s) for s in STEPS]}
    for source in (trackio(tmp_path / "a.db", rows), mlflow_folder(tmp_path / "run", **times)):
        record = read_record(source)
        np.testing.assert_array_equal(record.steps, STEPS)
        np.testing.assert_array_equal(record.norms, NORMS)


def test_rows_without_a_run_id_belong_to_the_run_of_their_name(tmp_path):
    rows = [(None, f"run-{i}", int(s), {"grad_norm": i * n}) for i in (1, 2) for s, n in zip(STEPS, NORMS, strict=True)]
    source = trackio(tmp_path / "a.db", rows)
    assert "1: 'run-1' (20 rows), 2: 'run-2' (20 rows)" in error_of(source)
    np.testing.assert_array_equal(read_record(source, run="run-2").norms, 2 * NORMS)


def test_of_two_runs_with_one_name_the_number_must_be_given(tmp_path):
    rows = [(key, "x", int(s), {"grad_norm": i * n}) for i, key in ((1, "a"), (2, "b")) for s, n in enumerate(NORMS)]
    source = trackio(tmp_path / "a.db", rows)
    assert "holds 2 runs named 'x': write run=1 or run=2 (--run 1 or --run 2)" in error_of(source, run="x")
    np.testing.assert_array_equal(read_record(source, run=2).norms, 2 * NORMS)


@pytest.mark.parametrize(
    "damaged", ["[1, 2]", None, '{"grad_norm": 1', b'{"grad_norm": "\xff"}', b"\xff", "[" * 9999, 7]
)
def test_a_damaged_row_of_trackio_is_named(tmp_path, damaged):
    rows = [("a", "a", s, {"grad_norm": n}) for s, n in enumerate(NORMS)] + [("a", "a", 20, damaged)]
    source = trackio(tmp_path / "a.db", rows)
    assert error_of(source).startswith(f"{source}: the metrics of the row with id 21 are no JSON object (")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (("loss", None, 1, 20), "value None"),
        (("loss", "abc", 1, 20), "value 'abc'"),
        (("loss", b"\xff", 1, 20), r"value b'\xff'"),
        (("loss", 1.0, None, 20), "timestamp None"),
        (("loss", 1.0, "abc", 20), "timestamp 'abc'"),
        (("loss", 1.0, 1, None), "step None"),
        (("loss", 1.0, 1, "abc"), "step 'abc'"),
    ],
)
def test_a_damaged_row_of_mlflow_is_named(tmp_path, row, what):
    source = mlflow_database(tmp_path / "a.db", [("grad_norm", n, t, t) for t, n in enumerate(NORMS)] + [row])
    message = error_of(source)
    assert message.startswith(f"{source}: a damaged row of the metric 'loss'")
    assert what in message


@pytest.mark.parametrize("damaged", [b"\xff\xfe", b"5 1.0", b"5 abc 5", b"[1, 2]", b"\0\0\0"])
def test_a_damaged_line_of_mlflow_is_named(tmp_path, damaged):
    lines = [f"{t} {n} {t}".encode() for t, n in enumerate(NORMS)]
    lines[5] = damaged
    run = mlflow_folder(tmp_path / "run", grad_norm=b"\n".join(lines) + b"\n", loss=b"1 2.0 1\n")
    (run / "metrics" / ".hidden").write_bytes(b"\xff")
    file = run / "metrics" / "grad_norm"
    assert error_of(run).startswith(f"{file}: line 6 is not 'TIME VALUE STEP': ")
    # The last line may still be being written.
    file.write_bytes(b"\n".join([*lines[:5], damaged.replace(b"abc 5", b"abc")]))
    np.testing.assert_array_equal(read_record(run).norms, NORMS[:5])


def test_mlflow_may_have_steps_below_zero_and_a_damaged_name(tmp_path):
    steps = np.arange(-10, 10)
    rows = [(100 + s, n, s) for s, n in zip(steps, NORMS, strict=True)]
    for run in ("a", "b"):
        folder = mlflow_folder(tmp_path / run, grad_norm=rows)
        (folder / "tags").mkdir()
        (folder / "tags" / "mlflow.runName").write_bytes(b"run \xff" + run.encode())
    record = read_record(tmp_path, run=1)
    np.testing.assert_array_equal(record.steps, steps)
    np.testing.assert_array_equal(record.norms, NORMS)


def test_a_metric_that_the_first_pass_lacks_stays_in_the_second(tmp_path):
    first = [(1000 + s, 1 + s / 100, s) for s in range(50)]
    second = [(9000 + s, 2 + s / 100, s) for s in range(50)]
    run = mlflow_folder(tmp_path / "run", grad_norm=first + second, loss=[(9000 + s, s, s) for s in range(50)])
    one, two = (read_record(run, run=i) for i in (1, 2))
    np.testing.assert_array_equal(one.norms, 1 + np.arange(50) / 100)
    assert np.all(np.isnan(one.losses))
    np.testing.assert_array_equal(two.norms, 2 + np.arange(50) / 100)
    np.testing.assert_array_equal(two.losses, np.arange(50))
    # Nor does the loss of a second pass fill an empty one of the first where each has lines of its own.
    lines = ["step,loss,grad_norm", *(f"{s},,{1 + s / 100}" for s in range(50))]
    for s in range(50):
        lines += [f"{s},{s},", f"{s},,{2 + s / 100}"]
    source = write(tmp_path / "log.csv", "\n".join(lines))
    assert np.all(np.isnan(read_record(source, run=1).losses))
    np.testing.assert_array_equal(read_record(source, run=2).losses, np.arange(50))
