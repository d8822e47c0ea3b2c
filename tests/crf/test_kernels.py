"""The published kernels."""

from segjax import crf


def test_presets_hold_the_published_numbers():
    assert len(crf.PRESETS) == 9
    bilateral, spatial = crf.PRESETS["deeplab_v2_resnet101"]
    assert (bilateral.weight, bilateral.sigma_xy, bilateral.sigma_rgb) == (4, 67, 3)
    assert (spatial.weight, spatial.sigma) == (3, 1)
    bilateral, spatial = crf.PRESETS["deeplab_v1_largefov"]
    assert (bilateral.weight, bilateral.sigma_xy, bilateral.sigma_rgb) == (4, 121, 5)
