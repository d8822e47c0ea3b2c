"""Plain float64 numpy: mean field over all pairs, and a permutohedral lattice in a dict."""

import itertools
import math

import numpy as np

from segjax import crf

POINTS = 400  # of `random_points`


def points(kernel: crf.Kernel, image: np.ndarray) -> np.ndarray:
    """Features of all pixels, float64 [H W, d]."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    position = np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)
    if isinstance(kernel, crf.Features):
        return np.asarray(kernel.values, np.float64).reshape(height * width, -1)
    if isinstance(kernel, crf.Spatial):
        return position / kernel.sigma
    color = image.reshape(-1, 3).astype(np.float64) / kernel.sigma_rgb
    return np.concatenate([position / kernel.sigma_xy, color], 1)


def dense(kernel: crf.Kernel, image: np.ndarray) -> np.ndarray:
    f = points(kernel, image)
    return np.exp(-0.5 * ((f[:, None] - f[None]) ** 2).sum(-1))


def normalize(k: np.ndarray, normalization: str) -> np.ndarray:
    total = k.sum(1)
    if normalization == "symmetric":
        return k / np.sqrt(total[:, None] * total[None])
    if normalization == "after":
        return k / total[:, None]
    if normalization == "before":
        return k / total[None]
    return k


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mean_field(logits, image, kernels, num_iterations, normalization="symmetric") -> np.ndarray:
    height, width, classes = logits.shape
    unary = -np.asarray(logits, np.float64).reshape(-1, classes)
    ks = [normalize(dense(k, image), normalization) for k in kernels]
    q = softmax(-unary)
    for _ in range(num_iterations):
        energy = 0
        for kernel, k in zip(kernels, ks):
            weight = np.asarray(kernel.weight, np.float64)
            mu = weight
            if weight.ndim < 2:  # Potts: the weight of a class times [l != l']
                mu = np.broadcast_to(weight, (classes,))[:, None] * (1 - np.eye(classes))
            message = k @ q
            if weight.ndim == 1:  # all labels pay; a class gets its own share back
                energy = energy - weight * message
            else:
                energy = energy + message @ mu.T
        q = softmax(-unary - energy)
    return q.reshape(height, width, classes)


def lattice_filter(features: np.ndarray, values: np.ndarray, reverse: bool = False) -> np.ndarray:
    """Splat, blur and slice with vertices in a dict; features [N, d], values [N, C]."""
    d = features.shape[1]
    scale = math.sqrt(2 / 3) * (d + 1)
    basis = np.zeros((d + 1, d))  # the elevation of each axis
    for j in range(1, d + 1):
        basis[:j, j - 1] = 1
        basis[j, j - 1] = -j
        basis[:, j - 1] /= math.sqrt(j * (j + 1))
    elevated = features @ (basis * scale).T
    cells: dict[tuple, np.ndarray] = {}
    corners = []
    for point, value in zip(elevated, values):
        # The lattice points around: those whose barycentric weights are all positive.
        down = np.floor(point / (d + 1)) * (d + 1)
        rest = point - down
        # Coordinates in descending order of what is left over; wrap by the sum.
        order = np.argsort(-rest, kind="stable")
        rank = np.empty(d + 1, int)
        rank[order] = np.arange(d + 1)
        excess = round(down.sum() / (d + 1))
        base = down - (rank + excess > d) * (d + 1) + (rank + excess < 0) * (d + 1)
        offset = (point - base) / (d + 1)
        ordered = np.sort(offset)[::-1]
        weights = [1 + ordered[-1] - ordered[0]]
        weights += [ordered[d - r] - ordered[d - r + 1] for r in range(1, d + 1)]
        place = np.empty(d + 1, int)
        place[np.argsort(-offset, kind="stable")] = np.arange(d + 1)
        own = []
        for r, w in enumerate(weights):
            key = base + np.where(place <= d - r, r, r - (d + 1))
            key = tuple(np.round(key).astype(int))
            cells[key] = cells.get(key, 0) + w * value
            own.append((key, w))
        corners.append(own)
    axes = range(d, -1, -1) if reverse else range(d + 1)
    zero = np.zeros(values.shape[1])
    for j in axes:
        step = -np.ones(d + 1, int)
        step[j] = d
        moved = lambda key, sign: tuple(np.asarray(key) + sign * step)  # noqa: B023
        cells = {
            key: v + 0.5 * (cells.get(moved(key, 1), zero) + cells.get(moved(key, -1), zero))
            for key, v in cells.items()
        }
    out = [sum(w * cells[key] for key, w in own) for own in corners]
    return np.array(out) / (1 + 2.0**-d)


def random_problem(height, width, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(height, width, classes)).astype(np.float32) * 2
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    # Smooth blocks, so that the bilateral kernel has something to hold on to.
    for y, x in itertools.product(range(0, height, 8), range(0, width, 8)):
        block = image[y : y + 8, x : x + 8]
        block[:] = block[0, 0] + rng.integers(0, 6, block.shape).astype(np.uint8) % 6
    return logits, image


def random_points(dimension: int, spread: float, seed: int = 0) -> tuple:
    """Features [d, POINTS], their extent and values [POINTS, 3]."""
    rng = np.random.default_rng(seed)
    extent = tuple(float(e) for e in rng.uniform(0.3, 1, dimension) * spread)
    features = (rng.random((dimension, POINTS)) * np.array(extent)[:, None]).astype(np.float32)
    values = rng.normal(size=(POINTS, 3)).astype(np.float32)
    return features, extent, values
