"""Two processes of four devices train as one process of eight does."""

import socket
import subprocess

import numpy as np
import pytest

from tests import programs, worker


def free_port():
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no port on loopback: {error}")


def start(devices, *arguments):
    return programs.start("tests.worker", *arguments, JAX_PLATFORMS="cpu", XLA_FLAGS=programs.flags(devices))


def finish(processes):
    """Their output, or None for those that failed or hung; none is left running."""
    try:
        outputs = [process.communicate(timeout=programs.HANG)[0] for process in processes]
        return all(process.returncode == 0 for process in processes), "\n".join(outputs)
    except subprocess.TimeoutExpired as error:
        for process in processes:
            process.kill()
        outputs = [process.communicate()[0] for process in processes]
        return False, "\n".join([f"no end after {error.timeout} s", *outputs])
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def of_two_processes(folder):
    """What each of the two found; started once more if another program took the port meanwhile."""
    outs = [folder / f"{process}.npz" for process in range(2)]
    for _ in range(2):
        address = f"127.0.0.1:{free_port()}"
        done, output = finish([start(4, out, address, process, 2) for process, out in enumerate(outs)])
        if done or "in use" not in output.lower():
            break
    assert done, output
    return [dict(np.load(out)) for out in outs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return worker.results(), of_two_processes(tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("way", ["in_jit", "in_shard_map"])
def test_two_processes_train_as_one(way, runs):
    alone, together = runs
    names = [name for name in alone if name.startswith(f"['{way}']")]
    assert {name for name in together[0] if name.startswith(f"['{way}']")} == set(names)
    for found in together:
        for name in names:
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-4, atol=1e-5, err_msg=name)
    (losses,) = (alone[name] for name in names if name.endswith("['loss']"))
    clipped = [alone[name][-1] for name in names if name.endswith("/clipped']")]
    assert losses[-1] < losses[0] / 2
    assert all(steps >= 5 for steps in clipped)


def test_both_ways_of_sharding_train_alike(runs):
    alone, _ = runs
    for name in [name for name in alone if name.startswith("['in_jit']")]:
        other = alone[name.replace("in_jit", "in_shard_map")]
        np.testing.assert_allclose(other, alone[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_both_processes_end_with_the_same_bits(runs):
    first, second = runs[1]
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)
