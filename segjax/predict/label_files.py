"""Label maps as files: for viewers, or named and numbered as a test server wants them."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from segjax.data.builders import cityscapes
from segjax.predict.prediction import save_labels

Write = Callable[[str, np.ndarray], None]


def writer(
    layout: str, folder: pathlib.Path, classes: Sequence[str], palette: Sequence[tuple[int, ...]]
) -> Write:
    """Returns a function of an image's id and its label map, integer [H, W], that writes a file.

    - "": `<folder>/<id>.png`, class ids with the colours of the classes.
    - "voc": `<folder>/results/VOC2012/Segmentation/comp6_test_cls/<id>.png`, the same; what is
      packed for the server of PASCAL VOC is the folder `results`.
    - "cityscapes": `<folder>/<id>.png`, grey, with the original ids in place of the training ids;
      the server finds an image by the city, sequence and frame in its name.

    Args:
      layout: one of the three.
      folder: where to write; made when missing.
      classes: names, by class id.
      palette: RGB, by class id.

    Raises:
      ValueError: the layout is unknown, or the classes are not those of its data set; the
        function: a file cannot be written.
    """
    needed = {"": len(classes), "voc": 21, "cityscapes": len(cityscapes.CLASSES)}
    if layout not in needed:
        raise ValueError(f"submission layout {layout!r}; accepted are voc, cityscapes")
    if len(classes) != needed[layout]:
        raise ValueError(
            f"the {layout} server takes {needed[layout]} classes, this network predicts "
            f"{len(classes)} ({', '.join(classes[:4])}, ...); leave the submission layout out"
        )
    kind = np.uint8 if len(classes) <= 255 else np.uint16
    ids = np.arange(len(classes), dtype=kind)
    colours: Sequence[tuple[int, ...]] = palette
    if layout == "voc":
        folder = folder / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    elif layout == "cityscapes":
        ids, colours = np.asarray(cityscapes.LABEL_IDS, np.uint8), ()

    def write(name: str, labels: np.ndarray) -> None:
        # The servers want one flat folder; a picture's id may hold the folders it was found in.
        name = name.rsplit("/", 1)[-1] if layout else name
        save_labels(folder / f"{name}.png", ids[labels], colours)

    return write
