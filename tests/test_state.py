import numpy as np

from segjax import state
from segjax.config import Input


def test_normalize():
    image = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    mean, std = (1.0, 2.0, 3.0), (2.0, 4.0, 8.0)
    expected = (image - np.array(mean, np.float32)) / np.array(std, np.float32)
    np.testing.assert_allclose(state.normalize(image, Input(mean, std)), expected)
    swapped = state.normalize(image[None], Input(mean, std, bgr=True))
    np.testing.assert_allclose(swapped[0], expected[..., ::-1])
