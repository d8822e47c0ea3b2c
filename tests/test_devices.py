from segjax import devices


def test_numbers_are_of_the_size_that_their_units_say():
    """A factor of a thousand, bits for bytes, or the numbers of a pod would stand out."""
    for kind, chip in devices.PEAKS.items():
        assert chip.name.split()[0] in kind
        assert 1e14 < chip.flops < 2e15
        assert 16 <= chip.memory / devices.GIB < 200
        assert 1e2 < chip.flops / chip.bandwidth < 1e3  # operations for each byte of memory
        assert 3 < chip.bandwidth / chip.links < 12


def test_the_all_reduce_of_a_pod_is_what_google_promises():
    for kind, promised in (("TPU v5 lite", 51.2e12), ("TPU v6 lite", 102.4e12)):
        assert 256 * devices.PEAKS[kind].links == promised
