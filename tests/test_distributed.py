"""train.py on two processes, as on a pod: each with half of the devices and of the data."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import chex
import pytest

from segjax import checkpoint, hosts
from tests.test_hosts import port

FLAGS = (
    "--config=configs/demo.py",
    "--config.model.width=4",
    "--config.data.num_train=12",
    "--config.data.num_val=5",
    "--config.augment.crop=(32, 48)",
    "--config.train.batch_size=4",
    "--config.train.eval_every=0",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=100000",
    "--config.train.recompute_batch_stats=0",
    "--config.eval.batch_size=4",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(workdir, cache, steps, processes, *flags, devices=2):
    """Starts a training on some processes, with so many devices each."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
    }
    together = ("--distributed", f"--processes={processes}", f"--coordinator=127.0.0.1:{port()}")
    return [
        subprocess.Popen(
            [
                *(sys.executable, "train.py", f"--workdir={workdir}", *FLAGS),
                f"--config.data.cache={cache}",
                f"--config.train.steps={steps}",
                *((*together, f"--process={number}") if processes > 1 else ()),
                *flags,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]


def finish(started, code=0):
    """Returns the outputs of processes that end with a code."""
    outputs = [process.communicate(timeout=240)[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [code] * len(started), (codes, "\n".join(outputs))
    return [" ".join(output.split()) for output in outputs]


def variables(workdir, step):
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.variables(step)


def metrics(workdir):
    return list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))


def until(process, text):
    """Waits for a line of the output of a process."""
    lines = []
    while text not in (line := process.stdout.readline()):
        lines.append(line)
        assert line, "".join(lines)


def test_two_processes_train_evaluate_stop_together_and_one_goes_on(tmp_path, cache):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    # On several processes pmap takes no options of the compiler, and they change rounding.
    flags = ("--config.train.recompute_batch_stats=2", "--config.compile.libraries=False")
    flags += ("--config.optim.lr=0.01",)
    engine = "--config.train.engine=shard_map"
    bands = start(
        *(tmp_path / "bands", cache, 1, 2, *flags, engine, "--config.train.rows=2"),
        "--config.augment.crop=(64, 48)",
    )
    outputs = finish(start(undisturbed, cache, 30, 2, *flags))
    assert "process 0 of 2, 2 of 4 devices" in outputs[0]
    finish(bands)
    for scores in (undisturbed / "eval" / "000030.json", tmp_path / "bands/eval/000001.json"):
        # Each image once, though two processes read them.
        assert json.loads(scores.read_text())["images"] == 5

    first, second = start(stopped, cache, 30, 2, *flags, engine)
    until(first, "step 2 of 30")
    second.send_signal(signal.SIGINT)
    outputs = finish([first, second], code=130)
    (step,) = checkpoint.saved(stopped)
    for output in outputs:
        assert "got SIGINT: all stop after the same step" in output
        assert f"stopped; step {step} of 30 is saved" in output
    # Both engines give the same numbers on two processes.
    logged = [
        [(row["loss"], row["grad_norm"]) for row in metrics(workdir)[:step]]
        for workdir in (undisturbed, stopped)
    ]
    assert logged[0] == logged[1] and len(logged[0]) == step

    workdirs = {4: tmp_path / "four", 1: stopped}  # by the devices of the one process
    shutil.copytree(stopped, workdirs[4])
    resumed = [start(path, cache, 30, 1, *flags, devices=n)[0] for n, path in workdirs.items()]
    for workdir, output in zip(workdirs.values(), finish(resumed), strict=True):
        assert f"going on after step {step}" in output
        assert [row["step"] for row in metrics(workdir)] == [*(str(i) for i in range(1, 31)), "30"]
        # Sums over devices and processes are added in another order.
        found = variables(undisturbed, 30), variables(workdir, 30)
        chex.assert_trees_all_close(*found, rtol=1e-3, atol=1e-4)


def test_a_process_that_is_killed_ends_the_other_by_name(tmp_path, cache):
    first, second = start(tmp_path / "run", cache, 2000, 2)
    until(first, "step 2 of 2000")
    second.kill()
    killed = time.monotonic()
    (output,) = finish([first], code=hosts.LOST)
    assert time.monotonic() - killed < hosts.HEARTBEAT  # not only when it is missed
    assert "process 1 (" in output and "is gone: it was killed, or has crashed" in output
    assert "Traceback" not in output
    second.communicate()
