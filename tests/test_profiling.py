import jax

from segjax import profiling


def test_a_trace_that_does_not_start_is_not_tried_again(tmp_path, monkeypatch, capsys):
    def fails(folder):
        raise RuntimeError("another one is running")

    monkeypatch.setattr(jax.profiler, "start_trace", fails)
    with profiling.Profile(tmp_path, (1, 3)) as trace:
        for step in (1, 2, 3):
            trace.begin(step)
            trace.end(step, None)
    assert capsys.readouterr().err.count("another one is running") == 1
