"""Strict settings for every test: four virtual devices, no silent promotion, no TensorFlow."""

import contextlib
import gc
import importlib.abc
import importlib.machinery
import os
import signal
import sys

# A shell starts what runs in the background with this signal ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        # The tests compile far longer than they compute.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # Four devices wait for each other on however few cores; by default the process is aborted.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"


class NoTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes importing TensorFlow anywhere an error.

    `sys.modules["tensorflow"] = None` would do, but tensorflow-datasets takes the mere key for an
    imported TensorFlow and uses it.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec):
        raise ModuleNotFoundError(f"{spec.name} is blocked in the tests", name=spec.name)

    def exec_module(self, module):
        """Never called; a loader without it is warned of, and imported in another way."""


sys.meta_path.insert(0, NoTensorFlow())

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Files that take minutes, which workers are to begin with: the last one would wait for them alone.
SLOW = (
    *("test_training.py", "test_distributed.py", "test_configs.py", "test_segmenter.py"),
    *("test_snippets.py", "test_crf_rnn.py", "test_train.py", "test_networks.py", "test_trial.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees the programs of a file: each maps memory, and a process may have 65,530 mappings."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder of compiled programs for each worker: JAX writes a file that others may read."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def compiled_once(programs):
    """For a file whose runs are alike: programs are kept as they are between commands."""
    with cached(programs) as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))  # for processes that tests start
        yield


@contextlib.contextmanager
def cached(folder):
    """Keeps all programs that are compiled inside in a folder; gives the settings of JAX."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield settings
