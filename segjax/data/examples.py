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
from segjax.data.folders import in_brackets, near_miss, printable
from segjax.data.images import DataError, DecodeError
from segjax.data.labels import MAP_EXAMPLE, Colour
from segjax.ops import IGNORE_LABEL

SHOWN = 10  # problems listed in one error
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """Where an example comes from."""

    id: str
    image: pathlib.Path
    mask: pathlib.Path
    listed: str = ""  # "train.txt, line 3" of the list that names it


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
    turned: bool = False  # the image, by its EXIF orientation
    mask_turned: bool = False  # with it: the mask was drawn on the pixels as stored
    brightest: int = -1  # of 0..255, of a file of 16 bits per channel


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
    turned: list[str] = dataclasses.field(default_factory=list)  # ids: by EXIF orientation
    mask_turned: list[str] = dataclasses.field(default_factory=list)  # ids: with the image
    deep: list[str] = dataclasses.field(default_factory=list)  # ids: 16 bits per channel
    brightest: int = -1  # of those, 0..255
    class_weights: list[float] = dataclasses.field(default_factory=list)  # median frequency, 0..254
    files: dict[str, int] = dataclasses.field(default_factory=dict)  # of the records: bytes
    names: list[str] = dataclasses.field(default_factory=list)  # ids, in the order of the records
    undecoded: list[str] = dataclasses.field(default_factory=list)  # files left out, and why
    # Of masks read by the index of a palette: the index, its colour, and the first file with it.
    palette: dict[str, tuple[Colour, str]] = dataclasses.field(default_factory=dict)

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
        self.names.append(example.id)
        self.pixels = (np.array(self.pixels) + example.pixels).tolist()
        self.images = (np.array(self.images) + present).tolist()
        self.image_pixels = (np.array(self.image_pixels) + present * height * width).tolist()
        self.colour_sum = (np.array(self.colour_sum) + example.colour_sum).tolist()
        self.colour_squares = (np.array(self.colour_squares) + example.colour_squares).tolist()
        if example.turned:
            self.turned.append(example.id)
        if example.mask_turned:
            self.mask_turned.append(example.id)
        if example.brightest >= 0:
            self.deep.append(example.id)
            self.brightest = max(self.brightest, example.brightest)

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
        """Returns the train ids that occur, without 255."""
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
                "would be ignored. Fix: " + MAP_EXAMPLE % "0:0,255:1"
            )
        if not self.ids():
            raise DataError(
                f"{masks} hold only 255, the ignore label: there is nothing to learn or to score. "
                "(The labels of a test server's split are not public.)"
            )
        weights = median_frequency(self.pixels[:IGNORE_LABEL], self.image_pixels[:IGNORE_LABEL])
        self.class_weights = weights.tolist()


def same_colour(
    palette: dict[str, tuple[Colour, str]], index: str, colour: Colour, file: str
) -> None:
    """Notes the colour that an index has in the palette of a mask, where it is the first.

    Args:
        palette: as in Summary; several threads may change it.
        index: that occurs in the mask.
        colour: RGB.
        file: the mask.

    Raises:
        DataError: the index had another colour before; the message has no subject.
    """
    other, first = palette.setdefault(index, (colour, file))
    if tuple(other) != tuple(colour):
        raise DataError(
            f"has the colour {tuple(colour)} for the index {index} of its palette, but {first} "
            f"has {tuple(other)}, so the indices do not tell the classes. List the colour of every "
            "class in classes.txt, 'road 128 64 128'; or, if the indices are the ids, save all "
            "masks in grey"
        )


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
    name: str, image: bytes, rgb: np.ndarray, label: np.ndarray, **about: bool | int
) -> Example:
    """Returns the example of an image file.

    Args:
        name: of the example.
        image: the file.
        rgb: its pixels, uint8 [H, W, 3].
        label: its train ids, uint8 [H, W].
        **about: other fields of Example.
    """
    mean, std = (m.ravel() for m in cv2.meanStdDev(rgb))
    return Example(
        id=name,
        image=image,
        label=images.write_png(label),
        size=label.shape,
        pixels=np.bincount(label.ravel(), minlength=256),
        colour_sum=mean * label.size,
        colour_squares=(std**2 + mean**2) * label.size,
        **about,
    )


def read_pair(
    pair: Pair,
    root: pathlib.Path,
    read_label: Callable[[Pair], np.ndarray],
    *,
    drawn: str = "upright",
) -> Example:
    """Reads and checks one pair.

    The image is turned upright as its EXIF orientation says, as prediction turns it. A mask of the
    size of the stored image alone was drawn on that, and is turned with it. Where both sizes are
    the same, `drawn` tells.

    Args:
        pair: where image and mask are.
        root: of the data set; messages name files from there.
        read_label: returns the train ids, uint8 [H, W], of a pair.
        drawn: what masks were drawn on where their size does not tell: "upright" images, as viewers
            and annotation tools show them, or images as "stored".

    Raises:
        DataError: the message begins with the name of the file at fault, relative to `root`.
    """
    name, mask_name = (printable(p.relative_to(root).as_posix()) for p in (pair.image, pair.mask))
    listed = f" ({pair.listed})" if pair.listed else ""
    there, mask_there = pair.image.is_file(), pair.mask.is_file()
    near = "" if there else in_brackets(near_miss(pair.image))
    near_mask = "" if mask_there else in_brackets(near_miss(pair.mask))
    match there, mask_there:
        case False, False:
            raise DataError(
                f"{name} is listed{listed}, but does not exist{near}, nor does "
                f"{mask_name}{near_mask}"
            )
        case True, False:
            raise DataError(f"{name} has no mask: {mask_name} is expected{listed}{near_mask}")
        case False, True:
            raise DataError(f"{mask_name} has no image: {name} is expected{listed}{near}")
    with _about(name):
        data = pair.image.read_bytes()
        image = images.decode(data)
    with _about(mask_name):
        label = read_label(pair)
    upright = image.rgb.shape[:2]
    stored = upright[::-1] if image.orientation > 4 else upright
    mask_turned = image.orientation != 1 and label.shape == stored
    if label.shape == upright == stored:
        mask_turned &= drawn == "stored"
    if mask_turned:
        label = np.ascontiguousarray(images.turn(label, image.orientation))
    if label.shape != upright:
        sizes = ["x".join(map(str, shape)) for shape in (upright, label.shape)]
        raise DataError(
            f"{name} is {sizes[0]} but {mask_name} is {sizes[1]} (height x width). Undo the "
            "resizing of one (masks by nearest neighbour), or pair the right ones"
        )
    if not _is_plain(data, image):
        data = images.write_png(image.rgb)
    return make_example(
        pair.id,
        data,
        image.rgb,
        label,
        turned=image.orientation != 1,
        mask_turned=mask_turned,
        brightest=int(image.rgb.max()) if image.deep else -1,
    )


def _is_plain(data: bytes, image: images.Decoded) -> bool:
    """Whether a file can stand in a record as it is: JPEG or PNG, upright."""
    return image.orientation == 1 and data.startswith((images.PNG, b"\xff\xd8\xff"))


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Puts a file's name before the errors raised inside."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{name} {error}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error


def read_pairs(
    pairs: Iterable[Pair],
    root: pathlib.Path,
    read_label: Callable[[Pair], np.ndarray],
    *,
    drawn: str = "upright",
    allowed: int = 0,
    undecoded: list[str] | None = None,
) -> Iterator[Example]:
    """Reads pairs in order, on several threads; see `read_pair`.

    Args:
        pairs: where images and masks are.
        root: of the data set.
        read_label: as for `read_pair`.
        drawn: as for `read_pair`.
        allowed: pairs that are left out at the most because a file cannot be decoded.
        undecoded: gets a sentence on each of those.

    Raises:
        DataError: after the last pair, or after the tenth problem, with all of them.
    """
    problems: list[str] = []
    undecoded = [] if undecoded is None else undecoded
    waiting = collections.deque()
    pairs, count = iter(pairs), 0
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while len(problems) < SHOWN:
            for pair in itertools.islice(pairs, 2 * THREADS - len(waiting)):
                waiting.append(pool.submit(read_pair, pair, root, read_label, drawn=drawn))
            if not waiting:
                break
            try:
                yield waiting.popleft().result()
                count += 1
            except DecodeError as error:
                undecoded.append(str(error))
                if len(undecoded) > allowed:  # with the first too many, all before it
                    problems += undecoded if len(undecoded) == allowed + 1 else undecoded[-1:]
            except DataError as error:
                problems.append(str(error))
        pool.shutdown(cancel_futures=True)
    if not count and not problems:
        problems = undecoded
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = " (the first ones; there may be more)" if len(problems) >= SHOWN else ""
        raise DataError(
            f"{len(problems)} problems{more}:\n" + "\n".join(f"- {p}" for p in problems)
        )
