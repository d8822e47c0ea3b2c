"""A trained network, ready for pictures.

    seg = segjax.load("runs/a")
    out = seg("street.jpg", crf="auto")
    out.labels  # uint8 [H, W]
    out.save("street.png")  # with the colours of the classes

Pictures are put on one of a few canvases, filled up with the mean colour at the bottom and on the
right: a program is compiled per canvas, and every result is the same whenever it is asked for.
Networks see that filling as the papers' do when they pad: near it, as near any border, features
mix with it, and a mean over the image (PSPNet, DeepLab v3) counts it. `canvas=image.shape[:2]`
avoids it at the price of a compilation per size. Where corners are aligned, sides of a canvas that
are not `config.alignment` times a whole number and one more shift scores by up to a stride less one
pixel: 500x375 is such a size. Larger pictures are cut into tiles.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import compiling, models, paths, state
from segjax.config import Config
from segjax.models import segnet
from segjax.predict import crf_choice, program, protocols, tiles
from segjax.predict.crf_choice import Choice
from segjax.predict.images import Picture, read, split
from segjax.predict.label_files import write_npy
from segjax.predict.prediction import Prediction
from segjax.predict.program import Kernels, Size, label_type
from segjax.predict.protocols import Protocol
from segjax.workdir import open_run

# Sides of the square canvases, one more where corners are aligned: 513 is the papers' for VOC.
SIDES = (256, 512, 768, 1152)
TILE, OVERLAP = 512, 128  # pixels, one more for the same reason
LARGE_STEP = 256  # pixels; sliding windows scale pictures of any size, on canvases of multiples


def load(
    path: str | os.PathLike[str],
    *,
    step: str = "best",
    canvases: Sequence[Size] = (),
    batch_size: int = 0,
) -> "Segmenter":
    """Loads a trained network with all that predicting takes.

    Args:
      path: the folder of a run, of one of its checkpoints, or of converted weights
        (`segjax convert`); or their file weights.safetensors.
      step: of a run: "best", "latest" or a number.
      canvases: heights and widths that pictures are padded to; by default that of the run and
        squares up to 1152 pixels.
      batch_size: pictures the device sees at once, where several are given; 0: 1 on a CPU, else 4.

    Returns:
      The network with its weights on the device, to be called with pictures.

    Raises:
      ValueError: there is no network, it is damaged, or it is none of segjax.
    """
    run = open_run(path, step)
    return Segmenter(
        run.config,
        run.variables,
        classes=run.classes,
        palette=run.palette,
        crfs=run.crfs,
        canvases=canvases,
        batch_size=batch_size,
    )


class Segmenter:
    """A network that turns pictures into label maps; made by `load`.

    Attributes:
      config: of the run.
      classes: names, by id.
      palette: RGB, by id.
      canvases: what pictures are padded to, smallest first.
      fill: the colour of padding, the mean of the network's input, uint8 [3].
      crfs: CRFs of the run, by name: "learnt" with the network, "tuned" by `segjax tune-crf`.
    """

    def __init__(
        self,
        config: Config,
        variables: dict[str, Any],
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        crfs: Mapping[str, Kernels] | None = None,
        canvases: Sequence[Size] = (),
        batch_size: int = 0,
    ) -> None:
        self.config = config
        self.variables = jax.device_put(variables)
        self.classes = tuple(classes)
        self.palette = tuple(tuple(colour) for colour in palette)
        self.canvases = _canvases(config) if not canvases else _by_area(canvases)
        self.batch_size = batch_size or (1 if jax.default_backend() == "cpu" else 4)
        self.crfs = dict(crfs or {})
        self.fill = np.rint(np.clip(config.input.mean, 0, 255)).astype(np.uint8)
        static = ("protocol", "probs", "capacity")
        libraries = config.compile.libraries
        self._segment = compiling.jit(
            functools.partial(program.segment, config=config),
            libraries=libraries,
            static_argnames=static,
        )
        self._tile = compiling.jit(
            functools.partial(program.segment_tile, config=config),
            libraries=libraries,
            static_argnames=static,
            donate_argnames="carry",
        )
        self._monte_carlo = compiling.jit(
            segnet.monte_carlo, libraries=libraries, static_argnums=0, static_argnames="samples"
        )

    def __repr__(self) -> str:
        model, count = type(self.config.model).__name__, len(self.classes)
        names = ", ".join(self.classes[:4]) + (", ..." if count > 4 else "")
        return f"Segmenter({model}, {count} classes: {names})"

    def __call__(
        self,
        images: Picture | Iterable[Picture],
        *,
        protocol: str | Protocol = "whole",
        crf: Choice = None,
        probs: bool = False,
        value_range: tuple[float, float] | None = None,
        canvas: Size | None = None,
    ) -> "Prediction | list[Prediction]":
        """Segments a picture, or several.

        Args:
          images: a path, a PIL image or an array [H, W, 3], uint8 or with `value_range`; or several
            in a list or in an array [N, H, W, 3]. `segjax.predict.images.read` takes more.
          protocol: a key of `protocols.PROTOCOLS`, or your own.
          crf: the fully connected CRF that refines the scores. None: the one learnt with the
            network, if there is one; "auto": learnt, tuned, the protocol's or that of the network's
            paper; "none", "learnt", "tuned", a key of `segjax.crf.PRESETS`; or kernels.
          probs: compute `probs` now; otherwise on first access.
          value_range: the values of black and white in an array.
          canvas: height and width to pad to.

        Returns:
          The prediction, or a list of them.

        Raises:
          ValueError: a picture cannot be read, or an option is wrong.
        """
        if isinstance(protocol, str):
            protocol = protocols.find(protocol)
        kernels = crf_choice.choose(crf, protocol, self.config.model, self.crfs)
        pictures, single = split(images)
        arrays = [read(picture, value_range) for picture in pictures]
        chosen = [canvas or self._canvas(array.shape[:2], protocol) for array in arrays]
        results: dict[int, Prediction] = {}
        for size in dict.fromkeys(chosen):
            indices = [i for i, c in enumerate(chosen) if c == size]
            for chunk in _chunks(indices, self.batch_size):
                found = self._run([arrays[i] for i in chunk], size, protocol, kernels, probs)
                results.update(zip(chunk, found, strict=True))
        predictions = [results[i] for i in range(len(arrays))]
        return predictions[0] if single else predictions

    def tiled(
        self,
        image: Picture,
        path: str | os.PathLike[str],
        *,
        protocol: str | Protocol = "whole",
        crf: Choice = None,
        tile: int = 0,
        overlap: int = 0,
        value_range: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Segments a picture of any size in overlapping tiles and writes the label map to a file.

        Memory does not grow with the height: besides the picture (of an .npy file only pages that
        the system can take back) it is what the network takes for one tile, and overlap * width *
        classes * 4 bytes, 88 MB at 8192 pixels and 21 classes. A process that did it to 8192x8192
        pixels (SegNet-Basic of width 32, 21 classes, two CPU cores) peaked at 907 MB, 201 of them
        pages of the file; with 1024x8192 pixels at 760 MB, 25 of them pages.

        Farther from the border of its tile than the network sees, a pixel's probabilities are those
        of the whole image; networks that take a mean over the image take it over the tile.

        Args:
          image: as in a call.
          path: of the label map, an .npy file; it appears when it is complete.
          protocol: what is done with each tile.
          crf: as in a call; each tile is refined before it is blended.
          tile: side of a tile in pixels; 0: 512, or 513 where corners are aligned.
          overlap: pixels that neighbours share; 0: 128, or 129.
          value_range: as in a call.

        Returns:
          The label map, [H, W], mapped from the file: uint8, or uint16 beyond 255 classes.

        Raises:
          ValueError: as a call; or the file cannot be written.
        """
        if isinstance(protocol, str):
            protocol = protocols.find(protocol)
        path = paths.local(path, "path")
        if path.suffix != ".npy":
            raise ValueError(f"{path} does not end in .npy, the format of large label maps")
        kernels = crf_choice.choose(crf, protocol, self.config.model, self.crfs)
        array = read(image, value_range)
        strips = self._strips(array, protocol, kernels, False, tile, overlap)
        write_npy(path, strips, array.shape[:2], label_type(len(self.classes)))
        return np.load(path, mmap_mode="r")

    def monte_carlo(
        self,
        image: Picture,
        *,
        samples: int = 40,
        seed: int = 0,
        value_range: tuple[float, float] | None = None,
        canvas: Size | None = None,
    ) -> "Prediction":
        """Segments a picture with Bayesian SegNet, whose dropout stays on.

        Args:
          image: as in a call.
          samples: networks drawn and averaged.
          seed: of the draw.
          value_range: as in a call.
          canvas: as in a call.

        Returns:
          A prediction that has `variance`.

        Raises:
          ValueError: the network is no SegNet with dropout, or the picture is larger than a canvas.
        """
        model = self.config.model
        if not isinstance(model, models.SegNet | models.SegNetBasic):
            raise ValueError(
                f"monte_carlo is of SegNet and SegNetBasic with dropout, not of "
                f"{type(model).__name__}"
            )
        array = read(image, value_range)
        size = array.shape[:2]
        canvas = canvas or self._canvas(size, Protocol())
        if canvas is None:
            raise ValueError(
                f"a picture of {size[0]}x{size[1]} pixels is larger than every canvas; write "
                f"canvas={size}, or load(..., canvases=[{size}])"
            )
        batch, _ = self._on_canvas([array], canvas, 1)
        normal = state.normalize(jnp.asarray(batch), self.config.input)
        mean, variance = self._monte_carlo(
            model, self.variables, normal, jax.random.key(seed), samples=samples
        )
        crop = np.s_[0, : size[0], : size[1]]
        probs = np.asarray(mean)[crop]
        labels = probs.argmax(-1).astype(label_type(len(self.classes)))
        return self._prediction(array, labels, lambda: probs, np.asarray(variance)[crop])

    def _canvas(self, size: Size, protocol: Protocol) -> Size | None:
        """Returns the smallest canvas that holds a picture, None where it goes to tiles."""
        for canvas in self.canvases:
            if size[0] <= canvas[0] and size[1] <= canvas[1]:
                return canvas
        if protocol.crop:
            return tuple(-(-side // LARGE_STEP) * LARGE_STEP for side in size)
        return None

    def _run(
        self,
        arrays: list[np.ndarray],
        canvas: Size | None,
        protocol: Protocol,
        kernels: Kernels,
        probs: bool,
    ) -> "list[Prediction]":
        if canvas is None:
            return [self._in_tiles(array, protocol, kernels, probs) for array in arrays]
        count = 1 if len(arrays) == 1 else self.batch_size
        batch, size = self._on_canvas(arrays, canvas, count)
        labels, soft = self._segment(
            self.variables,
            batch,
            size,
            kernels=kernels,
            protocol=protocol,
            probs=probs,
            capacity=program.capacity_of(batch, size, kernels),
        )
        labels = np.asarray(labels)
        predictions = []
        for i, array in enumerate(arrays):
            crop = np.s_[i, : array.shape[0], : array.shape[1]]
            if probs:
                later = functools.partial(np.asarray(soft).__getitem__, crop)
            else:
                later = functools.partial(self._probs, array, canvas, protocol, kernels)
            predictions.append(self._prediction(array, labels[crop], later))
        return predictions

    def _probs(
        self, array: np.ndarray, canvas: Size | None, protocol: Protocol, kernels: Kernels
    ) -> np.ndarray:
        return self._run([array], canvas, protocol, kernels, True)[0].probs

    def _prediction(
        self,
        array: np.ndarray,
        labels: np.ndarray,
        probs: Callable[[], np.ndarray],
        variance: np.ndarray | None = None,
    ) -> "Prediction":
        return Prediction(array, labels, self.classes, self.palette, variance, probs)

    def _on_canvas(
        self, arrays: list[np.ndarray], canvas: Size, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a batch uint8 [count, *canvas, 3] and the sizes in it, int32 [count, 2]."""
        batch = np.broadcast_to(self.fill, (count, *canvas, 3)).copy()
        sizes = np.broadcast_to(np.int32(canvas), (count, 2)).copy()
        for i, array in enumerate(arrays):
            height, width = array.shape[:2]
            if height > canvas[0] or width > canvas[1]:
                raise ValueError(
                    f"a picture of {height}x{width} pixels is larger than canvas={canvas}"
                )
            batch[i, :height, :width] = array
            sizes[i] = height, width
        return batch, sizes

    def _in_tiles(
        self, array: np.ndarray, protocol: Protocol, kernels: Kernels, probs: bool
    ) -> "Prediction":
        strips = np.concatenate(list(self._strips(array, protocol, kernels, probs)))
        if not probs:
            later = functools.partial(self._probs, array, None, protocol, kernels)
            return self._prediction(array, strips, later)
        labels = strips.argmax(-1).astype(label_type(len(self.classes)))
        return self._prediction(array, labels, lambda: strips)

    def _strips(
        self,
        array: np.ndarray,
        protocol: Protocol,
        kernels: Kernels,
        probs: bool,
        tile: int = 0,
        overlap: int = 0,
    ) -> Iterator[np.ndarray]:
        """Yields labels [h, W], or probabilities [h, W, C], from top to bottom."""
        odd = int(self.config.loss.align_corners)
        tile, overlap = tile or TILE + odd, overlap or OVERLAP + odd
        tiles.check(tile, overlap)
        height, width = array.shape[:2]
        step = tile - overlap
        rows, columns = tiles.grid((height, width), step)
        carry = tiles.start(columns, len(self.classes), tile, overlap)
        for row in range(rows):
            blocks = []
            for column in range(columns):
                top, left = row * step, column * step
                part = tiles.cut(array, top, left, tile, self.fill)
                size = np.int32([min(tile, height - top), min(tile, width - left)])
                block, carry = self._tile(
                    self.variables,
                    part,
                    size,
                    carry=carry,
                    place=np.int32([row, column]),
                    kernels=kernels,
                    protocol=protocol,
                    probs=probs,
                    capacity=program.capacity_of(part[None], size[None], kernels),
                )
                blocks.append(block)
            strip = np.concatenate([np.asarray(block) for block in blocks], axis=1)
            yield strip[: height - row * step, :width]


def _canvases(config: Config) -> list[Size]:
    """Returns the run's canvas and larger squares, or squares alone, by area."""
    odd = int(config.loss.align_corners)
    squares = [(side + odd, side + odd) for side in SIDES]
    own = tuple(config.data.canvas)
    return _by_area([own, *squares[1:]]) if min(own) else squares


def _by_area(canvases: Sequence[Size]) -> list[Size]:
    return sorted((tuple(canvas) for canvas in canvases), key=lambda c: c[0] * c[1])


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]
