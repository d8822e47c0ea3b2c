"""Random changes of a training image, on the device.

Each image has its own key. `augment` draws random numbers and gives them to the deterministic
functions below it. All shapes are static. Changes that the configuration switches off are not part
of the compiled program.

The order is colour, scale, rotation, flip, crop, blur. It is the order of PSPNet's PyTorch code,
except that the blur comes before the flip there; the results differ only near the border of a crop,
within the radius of the blur. Scaling, flipping and cropping are one matrix per axis. The image is
sampled once, bilinearly with half-pixel centres and without antialiasing (OpenCV's INTER_LINEAR),
the label by nearest neighbour at the same centres (INTER_NEAREST_EXACT), which keeps the two
aligned. Caffe and PSPNet use INTER_NEAREST, whose samples are up to half a pixel away. The side of
a scaled image is truncated to whole pixels, as in Caffe; PSPNet's code rounds it.

The host has put images of many sizes into the upper left corner of one canvas. Crops are drawn
within the image, not within the canvas: a canvas larger than an image changes nothing. A crop
larger than the scaled image is filled on its right and lower side, as in Caffe; PSPNet's code
centres the image.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from segjax import ops
from segjax.config import Augment, check_augment

GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def augment(
    key: jax.Array, image: jax.Array, label: jax.Array, config: Augment, fill: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Changes one image and its label at random.

    Args:
      key: a typed key.
      image: uint8 [H, W, 3], RGB, padded with `fill` (rounded) on the right and below.
      label: int32 [H, W], 255 where ignored and on the padding.
      config: which changes, and how strong.
      fill: RGB, 0..255, of the padding.

    Returns:
      The image, float32 0..255 [h, w, 3], and its label, int32 [h, w]; h, w is `config.crop`.

    Raises:
      ValueError: a field of `config` makes no sense.
    """
    check_augment(config)
    keys = iter(jax.random.split(key, 12))
    canvas = label.shape
    size = (config.crop[0] or canvas[0], config.crop[1] or canvas[1])
    scaled = bool(config.scales) or tuple(config.scale_range) != (1.0, 1.0)
    jitter = config.brightness or config.contrast or config.saturation or config.hue
    valid = valid_size(image, label, fill)  # unused unless one of the following needs it
    image = image.astype(jnp.float32)
    if jitter:
        image = _random_colour(keys, image, config, valid, fill)
    if config.scales:
        scale = jax.random.choice(next(keys), jnp.array(config.scales, jnp.float32))
    elif scaled:
        low, high = config.scale_range
        scale = jax.random.uniform(next(keys), minval=low, maxval=high)
    else:
        scale = None
    flip = jax.random.bernoulli(next(keys), config.flip) if config.flip else None
    if config.rotate or scaled or size != canvas:
        sides = valid if scale is None else scaled_size(valid, scale)
        top, left = (
            jax.random.randint(next(keys), (), 0, jnp.maximum(side - to, 0) + 1)
            for side, to in zip(sides, size)
        )
        where = {"scale": scale, "top": top, "left": left, "flip": flip, "size": size}
        if config.rotate:
            bound = jnp.deg2rad(config.rotate)
            angle = jax.random.uniform(next(keys), minval=-bound, maxval=bound)
            angle = jnp.where(jax.random.bernoulli(next(keys), config.rotate_prob), angle, 0.0)
            image, label = warp(image, label, angle=angle, **where, fill=fill, valid=valid)
        else:
            image, label = crop_and_scale(image, label, **where, fill=fill, valid=valid)
    elif flip is not None:
        image = jnp.where(flip, image[:, ::-1], image)
        label = jnp.where(flip, label[:, ::-1], label)
    if config.blur_prob:
        low, high = config.blur_sigma
        sigma = jax.random.uniform(next(keys), minval=low, maxval=high)
        sigma = jnp.where(jax.random.bernoulli(next(keys), config.blur_prob), sigma, 0.0)
        image = blur(image, sigma, radius=max(round(2 * high), 1))
    return image, label


def valid_size(
    image: jax.Array, label: jax.Array, fill: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Returns the height and width, int32, of the image on its canvas, from the padding round it.

    Padding is ignored and has exactly the rounded colour `fill`, up to the right and lower edge of
    the canvas. A canvas of nothing but padding is valid as a whole.
    """
    colour = jnp.clip(jnp.round(_channels(fill, 3)), 0, 255).astype(image.dtype)
    used = jnp.any(image != colour, axis=-1) | (label != ops.IGNORE_LABEL)
    ends = []
    for axis in (1, 0):
        line = jnp.any(used, axis=axis)
        ends.append(line.size - jnp.argmax(line[::-1]).astype(jnp.int32))
    return tuple(ends)


def scaled_size(valid: tuple[jax.Array, jax.Array], scale: jax.Array) -> tuple:
    """Returns height and width times `scale`, truncated to whole pixels, at least one."""
    return tuple(
        jnp.maximum((side.astype(jnp.float32) * scale).astype(jnp.int32), 1) for side in valid
    )


def crop_and_scale(
    image: jax.Array,
    label: jax.Array,
    *,
    scale: jax.Array | float | None,
    top: jax.Array | int,
    left: jax.Array | int,
    flip: jax.Array | bool | None,
    size: tuple[int, int],
    fill: Sequence[float],
    valid: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scales, mirrors, then cuts out.

    Args:
      image: float32 [H, W, 3].
      label: int32 [H, W].
      scale: factor; None for one, which costs no resampling.
      top: first row of the crop in the scaled image.
      left: first column of the crop in the scaled and mirrored image.
      flip: whether to mirror left and right; None for no.
      size: height and width of the crop, static.
      fill: RGB where the crop reaches beyond the image; the label is 255 there.
      valid: height and width of the image on its canvas, int32; None for all of it.

    Returns:
      The image [*size, 3] and its label [*size], dtypes as given.
    """
    image, label, valid = jnp.asarray(image), jnp.asarray(label), _valid(label, valid)
    scaled = valid if scale is None else scaled_size(valid, scale)
    *pixels, inside = _crop(scaled, top, left, flip, size)
    axes = list(zip(pixels, scaled, valid, label.shape))
    nearest = [(2 * jnp.clip(at, 0, to - 1) + 1) * side // (2 * to) for at, to, side, _ in axes]
    if scale is None:
        image = image[nearest[0]][:, nearest[1]]
    else:
        # 0..255 times a weight: bfloat16 passes, the default on TPU, would lose a grey level.
        weights = [
            ops.bilinear_weights(at, to, side, jnp.arange(n), align_corners=False)
            for at, to, side, n in axes
        ]
        image = jnp.einsum("ih,hwc->iwc", weights[0], image, precision="highest")
        image = jnp.einsum("jw,iwc->ijc", weights[1], image, precision="highest")
    label = label[nearest[0]][:, nearest[1]]
    return _fill_outside(image, label, inside, fill)


def warp(
    image: jax.Array,
    label: jax.Array,
    *,
    scale: jax.Array | float | None,
    angle: jax.Array | float,
    top: jax.Array | int,
    left: jax.Array | int,
    flip: jax.Array | bool | None,
    size: tuple[int, int],
    fill: Sequence[float],
    valid: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scales, rotates about the middle, mirrors, then cuts out.

    For the angle 0 it is equal to `crop_and_scale`, but it gathers four pixels for each pixel.

    Args:
      angle: radians, counterclockwise as one looks at the picture.
      image, label, scale, top, left, flip, size, fill, valid: see `crop_and_scale`.

    Returns:
      The image [*size, 3] and its label [*size], dtypes as given.
    """
    image, label, valid = jnp.asarray(image), jnp.asarray(label), _valid(label, valid)
    scaled = valid if scale is None else scaled_size(valid, scale)
    rows, columns, inside = _crop(scaled, top, left, flip, size)
    height, width = (side.astype(jnp.float32) for side in scaled)
    dy = (rows.astype(jnp.float32) + 0.5 - height / 2)[:, None]  # from the middle
    dx = (columns.astype(jnp.float32) + 0.5 - width / 2)[None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = (sin * dx + cos * dy) / height + 0.5  # 0..1 within the image
    x = (cos * dx - sin * dy) / width + 0.5
    inside &= (y >= 0) & (y < 1) & (x >= 0) & (x < 1)
    y, x = (
        jnp.clip(at * side.astype(jnp.float32) - 0.5, 0, (side - 1).astype(jnp.float32))
        for at, side in zip((y, x), valid)
    )
    y0, x0 = (jnp.floor(at).astype(jnp.int32) for at in (y, x))
    y1, x1 = (jnp.minimum(at + 1, side - 1) for at, side in zip((y0, x0), valid))
    fy, fx = ((at - jnp.floor(at))[..., None] for at in (y, x))
    upper = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    lower = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    nearest = (jnp.floor(at + 0.5).astype(jnp.int32) for at in (y, x))
    return _fill_outside(upper * (1 - fy) + lower * fy, label[*nearest], inside, fill)


def adjust_brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Multiplies an image, float32 0..255 [H, W, 3]; clips to 0..255."""
    return jnp.clip(image * factor, 0, 255)


def adjust_contrast(
    image: jax.Array, factor: jax.Array | float, inside: jax.Array | None = None
) -> jax.Array:
    """Multiplies the distance to the mean grey level of the pixels `inside`, bool [H, W]."""
    weight = jnp.ones(image.shape[:2]) if inside is None else inside.astype(jnp.float32)
    mean = jnp.sum(_gray(image) * weight) / jnp.sum(weight)
    return jnp.clip(mean + factor * (image - mean), 0, 255)


def adjust_saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Multiplies the distance of each pixel to its grey level; clips to 0..255."""
    gray = _gray(image)[..., None]
    return jnp.clip(gray + factor * (image - gray), 0, 255)


def adjust_hue(image: jax.Array, degrees: jax.Array | float) -> jax.Array:
    """Turns the hue of the HSV model; value and chroma stay."""
    red, green, blue = (image[..., c] for c in range(3))
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    channels = []
    for offset in (5, 3, 1):
        k = offset + sixths + degrees / 60
        k = k - 6 * jnp.floor(k / 6)  # within 0..6; the remainder function is slow on CPUs
        channels.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return jnp.stack(channels, axis=-1)


def blur(image: jax.Array, sigma: jax.Array | float, *, radius: int) -> jax.Array:
    """Gaussian blur of a float32 image [H, W, 3], reflecting at the edges as OpenCV does.

    Args:
      image: the image.
      sigma: pixels; 0 leaves the image as it is.
      radius: of the kernel, pixels, static; 2 for the 5x5 kernel of PSPNet.
    """
    at = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    kernel = jnp.exp(-(at**2) / (2 * jnp.maximum(sigma, 1e-3) ** 2))
    kernel = kernel / jnp.sum(kernel)
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, pad, mode="reflect")
        image = sum(
            kernel[k] * jax.lax.slice_in_dim(padded, k, k + image.shape[axis], axis=axis)
            for k in range(2 * radius + 1)
        )
    return image


def _random_colour(
    keys: Iterator[jax.Array], image: jax.Array, config: Augment, valid: tuple, fill: Sequence
) -> jax.Array:
    rows, columns = (jnp.arange(side) < end for side, end in zip(image.shape, valid))
    inside = rows[:, None] & columns[None, :]

    def factor(strength: float) -> jax.Array:
        return jax.random.uniform(next(keys), minval=1 - strength, maxval=1 + strength)

    if config.brightness:
        image = adjust_brightness(image, factor(config.brightness))
    if config.contrast:
        image = adjust_contrast(image, factor(config.contrast), inside)
    if config.saturation:
        image = adjust_saturation(image, factor(config.saturation))
    if config.hue:
        degrees = jax.random.uniform(next(keys), minval=-config.hue, maxval=config.hue)
        image = adjust_hue(image, degrees)
    return jnp.where(inside[..., None], image, _channels(fill, 3))


def _crop(
    scaled: tuple[jax.Array, jax.Array],
    top: jax.Array | int,
    left: jax.Array | int,
    flip: jax.Array | bool | None,
    size: tuple[int, int],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the rows and columns of the scaled image in a crop, and which pixels it has."""
    rows = jnp.arange(size[0]) + top
    columns = jnp.arange(size[1]) + left
    inside = (rows < scaled[0])[:, None] & (columns < scaled[1])[None, :]
    if flip is not None:
        columns = jnp.where(flip, scaled[1] - 1 - columns, columns)
    return rows, columns, inside


def _valid(label: jax.Array, valid: tuple | None) -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.asarray(side, jnp.int32) for side in valid or label.shape)


def _fill_outside(
    image: jax.Array, label: jax.Array, inside: jax.Array, fill: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    image = jnp.where(inside[..., None], image, _channels(fill, 3))
    return image, jnp.where(inside, label, ops.IGNORE_LABEL)


def _channels(values: Sequence[float], ndim: int) -> jax.Array:
    return jnp.array(values, jnp.float32).reshape((1,) * (ndim - 1) + (3,))


def _gray(image: jax.Array) -> jax.Array:
    return jnp.sum(image * _channels(GRAY, image.ndim), axis=-1)
