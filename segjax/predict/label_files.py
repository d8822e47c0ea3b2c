"""Label maps as files: for viewers, or named and numbered as a test server wants them."""

import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, PngImagePlugin

from segjax.data.labels import VOID_COLOUR, Colour
from segjax.files import whole_file

SOFTWARE = "segjax predict"  # what the PNG files are marked with
LAYOUTS = ("voc", "cityscapes")  # of test servers

# Writes the label map, integer [H, W], of the picture with an id.
Write = Callable[[str, np.ndarray], None]


def save_labels(
    path: str | os.PathLike[str], labels: np.ndarray, palette: Sequence[Colour] = ()
) -> None:
    """Writes a label map, uint8 or uint16 [H, W], as PNG of ids.

    Args:
      path: of the file; it appears when it is complete.
      labels: the ids.
      palette: RGB by id, for viewers to show; without it, or for uint16, the PNG is grey.

    Raises:
      ValueError: the path has another ending, or cannot be written.
    """
    if os.path.splitext(path)[1].lower() != ".png":
        raise ValueError(f"{path} does not end in .png, the format of label maps")
    picture = Image.fromarray(labels)
    if len(palette) and labels.dtype == np.uint8:
        table = np.full((256, 3), VOID_COLOUR, np.uint8)
        table[: len(palette)] = palette
        picture.putpalette(table.tobytes())
    with whole_file(path) as file:
        picture.save(file, format="PNG", pnginfo=_mark())


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes a picture, RGB uint8 [H, W, 3], as PNG.

    Raises:
      ValueError: the file cannot be written.
    """
    with whole_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG", pnginfo=_mark())


def save_probs(path: str | os.PathLike[str], probs: np.ndarray, classes: Sequence[str]) -> None:
    """Writes probabilities [H, W, C] as .npz: "probs", float16, and "classes", their names.

    Raises:
      ValueError: the file cannot be written.
    """
    with whole_file(path) as file:
        np.savez_compressed(file, probs=probs.astype(np.float16), classes=np.asarray(classes))


def is_own(path: pathlib.Path) -> bool:
    """Returns whether a file is one that this module, or `segjax predict`, wrote."""
    try:
        if path.suffix == ".png":
            with Image.open(path, formats=["PNG"]) as picture:
                return picture.info.get("Software") == SOFTWARE
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                return set(file.namelist()) == {"probs.npy", "classes.npy"}
        if path.suffix == ".csv":
            with path.open("rb") as file:
                return file.readline().startswith(b"picture,label_map,")
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):
        pass
    return False


def write_npy(
    path: pathlib.Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int],
    kind: type[np.unsignedinteger],
) -> None:
    """Writes a label map that comes in strips from top to bottom, and is never held whole.

    Args:
      path: of the .npy file; it appears when it is complete.
      strips: of integers, [h, W].
      shape: of the whole, height and width.
      kind: of the integers.

    Raises:
      ValueError: the file cannot be written.
    """
    # Written through the file system and not through a memory map: a full disk is then an error
    # that can be caught.
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for strip in strips:
            file.write(np.ascontiguousarray(strip).data)


def path_of(layout: str, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file of a label map.

    - "": `<folder>/<id>.png`; an id may hold subfolders.
    - "voc": `<folder>/results/VOC2012/Segmentation/comp6_test_cls/<id>.png`; the folder `results`
      is what is packed for the server of PASCAL VOC.
    - "cityscapes": `<folder>/<id>.png`; the server finds an image by the city, sequence and frame
      in its name.

    The servers want one flat folder: there, subfolders of an id are left out.

    Args:
      layout: one of the three.
      folder: where to write.
      name: id of the picture.
    """
    if layout:
        name = name.rsplit("/", 1)[-1]
    if layout == "voc":
        folder = folder / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    return folder / f"{name}.png"


def writer(
    layout: str, folder: pathlib.Path, classes: Sequence[str], palette: Sequence[Colour]
) -> Write:
    """Returns a function of an id and a label map, integer [H, W], that writes `path_of` it.

    The PNG holds class ids and shows the colours of the classes. For "cityscapes" it is grey, with
    the original ids in place of the training ids.

    Args:
      layout: "", "voc" or "cityscapes".
      folder: where to write; made when missing.
      classes: names, by class id.
      palette: RGB, by class id.

    Raises:
      ValueError: the layout is unknown, or the classes are not those of its data set; the
        function: a file cannot be written.
    """
    if layout and layout not in LAYOUTS:
        raise ValueError(f"submission layout {layout!r}; accepted are {', '.join(LAYOUTS)}")
    ids = np.arange(len(classes), dtype=np.min_scalar_type(len(classes)))
    needed = {"voc": 21}.get(layout, len(classes))
    if layout == "cityscapes":
        from segjax.data.builders import cityscapes  # imports tensorflow-datasets, which is slow

        ids, palette = np.asarray(cityscapes.LABEL_IDS, np.uint8), ()
        needed = len(ids)
    if len(classes) != needed:
        raise ValueError(
            f"the {layout} server takes {needed} classes, this network predicts "
            f"{len(classes)} ({', '.join(classes[:4])}, ...); leave the submission layout out"
        )

    def write(name: str, labels: np.ndarray) -> None:
        save_labels(path_of(layout, folder, name), ids[labels], palette)

    return write


def _mark() -> PngImagePlugin.PngInfo:
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", SOFTWARE)
    return mark
