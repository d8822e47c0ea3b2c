"""train.py on two processes, as on a pod: each with half of the devices and of the data."""

import csv
import json
import os
import socket
import subprocess
import sys

import chex

from segjax import checkpoint

FLAGS = (
    "--config=configs/demo.py",
    "--config.data.num_train=12",
    "--config.data.num_val=5",
    "--config.augment.crop=(32, 48)",
    "--config.train.batch_size=4",
    "--config.train.eval_every=0",
    "--config.train.log_every=2",
    "--config.train.checkpoint_every=2",
    "--config.train.recompute_batch_stats=2",
    "--config.eval.batch_size=4",
)


def train(workdir, cache, steps, processes):
    """Trains on four devices, shared by some processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes} "
        "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    together = ("--distributed", f"--processes={processes}", f"--coordinator={coordinator}")
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "train.py", f"--workdir={workdir}", *FLAGS),
                f"--config.data.cache={cache}",
                f"--config.train.steps={steps}",
                *((*together, f"--process={number}") if processes > 1 else ()),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(outputs)
    return [" ".join(output.split()) for output in outputs]


def test_two_processes_train_evaluate_and_go_on_as_one_would(tmp_path):
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    outputs = train(workdir, cache, steps=2, processes=2)
    assert "process 0 of 2, 2 of 4 devices" in outputs[0]
    scores = json.loads((workdir / "eval" / "000002.json").read_text())
    assert scores["images"] == 5  # each image once, though two processes read them

    train(tmp_path / "alone", cache, steps=2, processes=1)
    found = []
    for folder in (workdir, tmp_path / "alone"):
        with checkpoint.Checkpoints(folder, read_only=True) as checkpoints:
            found.append(checkpoints.variables(2))
    # Devices add their gradients in another order.
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)

    assert "going on after step 2" in train(workdir, cache, steps=4, processes=2)[0]
    rows = list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "2", "4", "4"]
