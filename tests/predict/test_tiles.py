"""Blending of tiles against a sum over whole arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.predict import tiles

TILE, OVERLAP, CLASSES = 96, 32, 3
STEP = TILE - OVERLAP


def blended(probs, rows, columns):
    """The blocks of tiles [rows, columns, TILE, TILE, C] put together."""
    carry = tiles.start(columns, CLASSES, TILE, OVERLAP)
    blend = jax.jit(tiles.blend)
    strips = []
    for row in range(rows):
        blocks = []
        for column in range(columns):
            block, carry = blend(probs[row, column], carry, np.int32(row), np.int32(column))
            blocks.append(np.asarray(block))
        strips.append(np.concatenate(blocks, 1))
    return np.concatenate(strips)


def test_blocks_are_the_weighted_sum_of_all_tiles():
    rows, columns = 3, 4
    probs = np.random.default_rng(0).uniform(size=(rows, columns, TILE, TILE, CLASSES))
    fade = np.sin(np.pi / 2 * (np.arange(OVERLAP) + 0.5) / OVERLAP) ** 2
    size = rows * STEP + OVERLAP, columns * STEP + OVERLAP
    sums, weights = np.zeros((*size, CLASSES)), np.zeros(size)
    for row in range(rows):
        for column in range(columns):
            ramps = []
            for i in (row, column):
                ramp = np.ones(TILE)
                ramp[:OVERLAP] = fade if i else 1
                ramp[TILE - OVERLAP :] = fade[::-1]
                ramps.append(ramp)
            weight = ramps[0][:, None] * ramps[1][None]
            place = np.s_[row * STEP : row * STEP + TILE, column * STEP : column * STEP + TILE]
            sums[place] += weight[..., None] * probs[row, column]
            weights[place] += weight
    inner = np.s_[: rows * STEP, : columns * STEP]
    np.testing.assert_allclose(weights[inner], 1)
    found = blended(probs.astype(np.float32), rows, columns)
    np.testing.assert_allclose(found, sums[inner], atol=1e-6)


def test_tiles_that_agree_leave_no_seam():
    picture = np.random.default_rng(1).uniform(
        size=(2 * STEP + OVERLAP, 3 * STEP + OVERLAP, CLASSES)
    )
    picture = picture.astype(np.float32)
    cut = [[picture[r * STEP :, c * STEP :][:TILE, :TILE] for c in range(3)] for r in range(2)]
    found = blended(np.array(cut), 2, 3)
    np.testing.assert_allclose(found, picture[: 2 * STEP, : 3 * STEP], atol=1e-6)


def test_cut_fills_beyond_the_image():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    tile = tiles.cut(image, 2, 4, 6, np.uint8([1, 2, 3]))
    np.testing.assert_array_equal(tile[:3, :3], image[2:, 4:])
    assert (tile[3:] == [1, 2, 3]).all() and (tile[:, 3:] == [1, 2, 3]).all()


def test_grid_covers_the_image():
    assert tiles.grid((64, 65), 64) == (1, 2)
    assert tiles.grid((1, 1300), 384) == (1, 4)


@pytest.mark.parametrize(("tile", "overlap"), [(128, 100), (128, 0), (130, 32), (64, -64)])
def test_tiles_that_cannot_be_laid(tile, overlap):
    with pytest.raises(ValueError, match=f"tile={tile} with overlap={overlap} pixels"):
        tiles.check(tile, overlap)


def test_the_carry_does_not_grow_with_the_height():
    above, left = tiles.start(22, 21, 512, 128)
    assert above.nbytes == 128 * (22 * 384 + 128) * 21 * 4
    assert left.nbytes == 512 * 128 * 21 * 4
    assert jnp.float32 == above.dtype == left.dtype
