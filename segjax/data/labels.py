"""From the numbers a mask file stores to train ids: 0..C-1, and 255 for what is ignored."""

import ast
from collections.abc import Iterable, Mapping

import numpy as np

from segjax.data.images import DataError
from segjax.ops import IGNORE_LABEL

VOID_COLOUR = (224, 224, 192)  # of PASCAL VOC
MAP_EXAMPLE = '--config.data.label_map="{%s}" (segjax check: --label-map)'

Colour = tuple[int, int, int]  # RGB, 0..255


def colour_map(count: int) -> tuple[Colour, ...]:
    """Returns the first colours of PASCAL VOC: the bits of the index, dealt to red, green, blue."""

    def channel(index: int, offset: int) -> int:
        return sum((index >> (3 * bit + offset) & 1) << (7 - bit) for bit in range(3))

    return tuple(tuple(channel(i, c) for c in range(3)) for i in range(count))


def parse_label_map(text: str) -> dict[int, int]:
    """Parses `"{0:0,255:1}"`; an empty string changes nothing.

    Raises:
        ValueError: the text is not a dict of integers, or maps to something outside 0..255.
    """
    try:
        found = ast.literal_eval(text) if text else {}
    except (SyntaxError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(type(i) is int for i in (*found, *found.values())):
        raise ValueError(
            f"data.label_map={text!r} is not a map of ids; write the id in the file, a colon and "
            "the id it becomes: " + MAP_EXAMPLE % "0:0,255:1"
        )
    if bad := [i for i in found.values() if not 0 <= i <= IGNORE_LABEL]:
        raise ValueError(
            f"data.label_map={text!r} maps to {bad[0]}; classes are 0..254, and 255 is ignored"
        )
    return found


def to_train_ids(
    mask: np.ndarray,
    ids: Mapping[int, int],
    *,
    label_map: Mapping[int, int],
    colours: Mapping[tuple[int, int, int], int] | None = None,
) -> np.ndarray:
    """Returns the train ids of a decoded mask.

    Args:
        mask: numbers as `images.read_mask` gives them, [H, W], [H, W, 3] or [H, W, 4].
        ids: number in the file -> train id, for every number that is allowed.
        label_map: changes numbers of the file before `ids` is looked up.
        colours: RGB -> train id, where a colour stands for a class.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: the mask holds unknown colours, fractions or an id that is not allowed. The
            message is a sentence without its subject, the name of the file.
    """
    if mask.ndim == 3:
        mask = _from_colours(mask[..., :3], colours)
        if colours is not None:
            ids = {i: i for i in (*colours.values(), IGNORE_LABEL)}
    if mask.dtype.kind == "f":
        mask = _from_fractions(mask)
    values = np.unique(mask)
    mapped = [label_map.get(int(value), int(value)) for value in values]
    if wrong := [int(value) for value, new in zip(values, mapped) if new not in ids]:
        raise DataError(_wrong_ids(mask, wrong, ids, present=values))
    low = int(values[0])
    table = np.zeros(int(values[-1]) - low + 1, np.uint8)
    table[values.astype(np.int64) - low] = [ids[new] for new in mapped]
    return table[mask.astype(np.int64) - low if low else mask]


def _from_colours(mask: np.ndarray, colours: Mapping | None) -> np.ndarray:
    if colours is None and np.all(mask == mask[..., :1]):  # a grey mask saved with three channels
        return mask[..., 0]
    packed = mask.astype(np.int64) @ np.array([65536, 256, 1])
    values, first, counts = np.unique(packed, return_index=True, return_counts=True)
    found = [tuple(int(v) >> shift & 255 for shift in (16, 8, 0)) for v in values]
    if colours is None:
        most = sorted(zip(counts, found), reverse=True)
        listed = ", ".join(f"{c} {n / packed.size:.1%}" for n, c in most[:8])
        raise DataError(
            f"is an RGB picture (3 channels, {len(found):,} colours); one class id per pixel is "
            "needed. If colours mean classes: use the data set 'folder' and write the colour "
            "of each class after its name in classes.txt, 'road 128 64 128'. If the colours are "
            "many, the mask was interpolated or saved as JPEG: export it again as PNG with nearest "
            f"neighbour. Colours found: {listed}{', ...' if len(found) > 8 else ''}"
        )
    for colour, at in zip(found, first):
        if colour not in colours:
            row, column = divmod(int(at), mask.shape[1])
            raise DataError(
                f"has the colour {colour} at row {row}, column {column}, which the list of classes "
                f"does not name; add it there, as 'void {' '.join(map(str, colour))}' if it is to "
                "be ignored"
            )
    numbers = np.array([colours[colour] for colour in found])
    return numbers[np.searchsorted(values, packed)]


def _from_fractions(mask: np.ndarray) -> np.ndarray:
    whole = np.isfinite(mask) & (mask == np.round(mask))
    if whole.all():
        return mask.astype(np.int64)
    row, column = np.argwhere(~whole)[0]
    raise DataError(
        f"holds {mask[row, column]:g} at row {row}, column {column}: class ids are whole numbers. "
        "Was the mask scaled to 0..1, or resized with interpolation? Export the ids as 8-bit PNG"
    )


def _wrong_ids(mask: np.ndarray, wrong: list[int], ids: Mapping, *, present: np.ndarray) -> str:
    where = mask == wrong[0]
    row, column = np.argwhere(where)[0]
    classes = len(set(ids.values()) - {IGNORE_LABEL})
    text = (
        f"has id {wrong[0]} at row {row}, column {column} ({where.sum():,} pixels) but "
        f"num_classes={classes} allows {spans(ids)}."
    )
    if len(wrong) > 1:
        text += f" Other ids that are not allowed: {spans(wrong[1:])}."
    if wrong[0] < 0:
        why = "-1 usually means void; to ignore it:"
        return f"{text} {why} {MAP_EXAMPLE % ','.join(f'{i}:255' for i in wrong if i < 0)}"
    if wrong == [classes] and 0 not in present:
        shift = ",".join(f"{i}:{i - 1}" for i in range(1, classes + 1))
        return f"{text} Do the ids start at 1? Then: {MAP_EXAMPLE % shift}"
    if len(wrong) > 8:
        return f"{text} So many ids come from interpolation or JPEG: export the mask as PNG"
    ignore = ",".join(f"{i}:255" for i in wrong)
    return (
        f"{text} Name the missing classes, or repair the mask, or ignore the ids: "
        f"{MAP_EXAMPLE % ignore}"
    )


def spans(numbers: Iterable[int]) -> str:
    """Writes numbers as people do: `0..18 (and 255)`."""
    numbers = sorted(numbers)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [f"{a}" if a == b else f"{a}..{b}" for a, b in runs]
    if len(parts) > 1 and parts[-1] == str(IGNORE_LABEL):
        return f"{', '.join(parts[:-1])} (and {IGNORE_LABEL})"
    return ", ".join(parts)
