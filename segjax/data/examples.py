"""Reads pairs of image and mask, checks them, and counts what they hold, in one pass."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from segjax.data import images
from segjax.data.folders import near_miss, printable
from segjax.data.images import DataError
from segjax.ops import IGNORE_LABEL

SHOWN = 10  # problems listed in one error
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """Where an example comes from."""

    id: str
    image: pathlib.Path
    mask: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Example:
    """What a record holds, and what is counted about it."""

    id: str
    image: bytes  # an image file
    label: bytes  # PNG of train ids
    size: tuple[int, int]  # height, width in pixels
    pixels: np.ndarray  # int64 [256], pixels per train id
    colour_sum: np.ndarray  # float64 [3], sum over pixels of RGB
    colour_squares: np.ndarray  # float64 [3], sum over pixels of RGB squared
    orientation: str = ""  # what was done about one in EXIF: "ignored" or "applied"


@dataclasses.dataclass
class Summary:
    """What a split holds; every field goes to JSON."""

    num_images: int = 0
    pixels: list[int] = dataclasses.field(default_factory=lambda: [0] * 256)  # per train id
    images: list[int] = dataclasses.field(default_factory=lambda: [0] * 256)  # that hold the id
    image_pixels: list[int] = dataclasses.field(default_factory=lambda: [0] * 256)  # of those
    height: int = 0  # largest, pixels
    width: int = 0  # largest, pixels
    highest: str = ""  # id of the image with the largest height
    widest: str = ""  # id of the image with the largest width
    least_height: int = 0  # pixels
    least_width: int = 0  # pixels
    colour_sum: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3)
    colour_squares: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3)
    oriented: list[str] = dataclasses.field(default_factory=list)  # ids: EXIF orientation ignored
    turned: list[str] = dataclasses.field(default_factory=list)  # ids: EXIF orientation applied
    class_weights: list[float] = dataclasses.field(default_factory=list)  # median frequency, 0..254

    def add(self, example: Example) -> None:
        """Counts one example."""
        height, width = example.size
        if height > self.height:
            self.height, self.highest = height, example.id
        if width > self.width:
            self.width, self.widest = width, example.id
        self.least_height = min(height, self.least_height or height)
        self.least_width = min(width, self.least_width or width)
        present = example.pixels > 0
        self.num_images += 1
        self.pixels = (np.array(self.pixels) + example.pixels).tolist()
        self.images = (np.array(self.images) + present).tolist()
        self.image_pixels = (np.array(self.image_pixels) + present * height * width).tolist()
        self.colour_sum = (np.array(self.colour_sum) + example.colour_sum).tolist()
        self.colour_squares = (np.array(self.colour_squares) + example.colour_squares).tolist()
        if example.orientation == "ignored":
            self.oriented.append(example.id)
        elif example.orientation == "applied":
            self.turned.append(example.id)

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean RGB, 0..255, over all pixels."""
        return tuple(float(s) / sum(self.pixels) for s in self.colour_sum)

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of RGB, 0..255, over all pixels."""
        squares = np.array(self.colour_squares) / sum(self.pixels)
        return tuple(np.sqrt(squares - np.array(self.mean) ** 2).tolist())

    def ids(self) -> list[int]:
        """Returns the train ids that occur, 255 not among them."""
        return [i for i, n in enumerate(self.pixels[:IGNORE_LABEL]) if n]

    def finish(self, masks: str) -> None:
        """Computes the class weights.

        Args:
            masks: where the masks are, for the error.

        Raises:
            DataError: every mask is fine by itself, but all together cannot be.
        """
        if self.pixels[IGNORE_LABEL] and self.ids() == [0]:
            raise DataError(
                f"{masks} hold only {{0, 255}} and 255 is the ignore label, so every object pixel "
                'would be ignored. Fix: --config.data.label_map="{0:0,255:1}"'
            )
        if not self.ids():
            raise DataError(
                f"{masks} hold only 255, the ignore label: there is nothing to learn or to score. "
                "(The labels of a test server's split are not public.)"
            )
        weights = median_frequency(self.pixels[:IGNORE_LABEL], self.image_pixels[:IGNORE_LABEL])
        self.class_weights = weights.tolist()


def median_frequency(pixels: Sequence[int], image_pixels: Sequence[int]) -> np.ndarray:
    """Returns `median(freq) / freq` per class, where `freq = pixels / image_pixels`.

    Median frequency balancing as in SegNet (Badrinarayanan et al. 2017, section 4).

    Args:
        pixels: of each class, [C].
        image_pixels: all pixels, void ones too, of the images that hold the class, [C].

    Returns:
        float32 [C]. A class that never occurs has the weight 0 and no part in the median.
    """
    pixels, image_pixels = np.asarray(pixels, np.float64), np.asarray(image_pixels, np.float64)
    present = pixels > 0
    freq = pixels / np.where(present, image_pixels, 1)
    weights = np.zeros(len(pixels), np.float32)
    weights[present] = np.median(freq[present]) / freq[present]
    return weights


def make_example(
    name: str, image: bytes, rgb: np.ndarray, label: np.ndarray, orientation: str = ""
) -> Example:
    """Returns the example of an image file, its pixels uint8 [H, W, 3] and its label [H, W]."""
    mean, std = (m.ravel() for m in cv2.meanStdDev(rgb))
    return Example(
        id=name,
        image=image,
        label=images.write_png(label),
        size=label.shape,
        pixels=np.bincount(label.ravel(), minlength=256),
        colour_sum=mean * label.size,
        colour_squares=(std**2 + mean**2) * label.size,
        orientation=orientation,
    )


def read_pair(
    pair: Pair, root: pathlib.Path, to_label: Callable[[np.ndarray], np.ndarray]
) -> Example:
    """Reads and checks one pair; `to_label` turns a decoded mask into train ids.

    An EXIF orientation is applied where the mask has the size of the turned picture and not that of
    the stored one. Otherwise it is ignored: the mask was drawn on the pixels as stored, or both
    sizes are the same and nothing tells.

    Raises:
        DataError: the message begins with the name of the file at fault, relative to `root`.
    """
    name, mask_name = (printable(p.relative_to(root).as_posix()) for p in (pair.image, pair.mask))
    match pair.image.exists(), pair.mask.exists():
        case False, False:
            raise DataError(
                f"{name} is listed, but does not exist{_near(pair.image)}, nor does {mask_name}"
            )
        case True, False:
            raise DataError(f"{name} has no mask: {mask_name} is expected{_near(pair.mask)}")
        case False, True:
            raise DataError(f"{mask_name} has no image: {name} is expected{_near(pair.image)}")
    with _about(name):
        data = pair.image.read_bytes()
        rgb = images.read_image(data)
        orientation = "ignored" if images.orientation_matters(data) else ""
    with _about(mask_name):
        label = to_label(images.read_mask(pair.mask.read_bytes()))
    if orientation and label.shape != rgb.shape[:2]:
        upright = images.read_image(data, upright=True)
        if label.shape == upright.shape[:2]:
            rgb, data, orientation = upright, images.write_png(upright), "applied"
    if label.shape != rgb.shape[:2]:
        sizes = ["x".join(map(str, a.shape[:2])) for a in (rgb, label)]
        raise DataError(
            f"{name} is {sizes[0]} but {mask_name} is {sizes[1]} (height x width). Undo the "
            "resizing of one (masks by nearest neighbour), or pair the right ones"
        )
    return make_example(pair.id, data, rgb, label, orientation)


def _near(path: pathlib.Path) -> str:
    near = near_miss(path)
    return f" ({near})" if near else ""


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Puts a file's name before the errors raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error


def read_pairs(
    pairs: Iterable[Pair], root: pathlib.Path, to_label: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Example]:
    """Reads pairs in order, on several threads.

    Raises:
        DataError: after the last pair, or after the tenth problem, with all of them.
    """
    problems = []
    waiting = collections.deque()
    pairs = iter(pairs)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while len(problems) < SHOWN:
            for pair in itertools.islice(pairs, 2 * THREADS - len(waiting)):
                waiting.append(pool.submit(read_pair, pair, root, to_label))
            if not waiting:
                break
            try:
                yield waiting.popleft().result()
            except DataError as error:
                problems.append(str(error))
        pool.shutdown(cancel_futures=True)
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = " (the first ones; there may be more)" if len(problems) == SHOWN else ""
        raise DataError(
            f"{len(problems)} problems{more}:\n" + "\n".join(f"- {p}" for p in problems)
        )
