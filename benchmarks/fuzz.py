"""Damaged and random inputs for everything that reads what people hand in.

    python benchmarks/fuzz.py [--inputs 12000] [--seed 0] [--only NAMES] [--json FILE]

Each input is a whole one with bytes, lines or values changed, cut out, doubled or replaced. It
must be read, or refused: a ValueError that a `raise` of segjax makes. Every other exception is
foreign, a fault, and is printed with what gives it again. Pictures of more than four million
pixels are refused here, so that a changed size costs no time.
"""

import argparse
import collections
import copy
import dataclasses
import functools
import io
import json
import linecache
import pathlib
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import rich.console
import rich.table
import safetensors.numpy
from PIL import Image

from segjax import config, files, log, pretrained, report, workdir
from segjax.cli import overrides
from segjax.data import classes, coco, images, labels, lists
from segjax.data.folders import Walk
from segjax.evaluate.result import Evaluation
from segjax.metrics import Scores
from segjax.models import SegNet
from segjax.predict import images as predicted
from segjax.pretrained import files as weight_files

ROOT = pathlib.Path(__file__).parents[1]
STRANGE = (  # for a value of JSON
    *(None, True, -1, 0, 0.5, 1e300, 10**30, 10**400, float("nan"), "x", "", "\ud800", "<b>"),
    *([], {}, [1], [[1, 2]], {"a": 1}, {"class": "Norm"}, {"class": "SegNet"}),
)
PIECES = (  # for a text
    *("", "\0", "..", "../..", "/", "\\", '"', "'", ",", ";", "\t", "#", "\ufeff", "\r", "\n"),
    *("\x1a", "é", "\ud83d\ude00", "255", "-1", "nan", "1e400", "{", "}", "[", "(", "=", "--"),
    *("x" * 300, "9" * 5000, "[" * 2000, "None", "True", "a b"),
)
Try = Callable[[random.Random], Callable[[], Any]]  # makes an input; returns what reads it


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Cuts, changes, doubles or removes bytes, more often near the beginning."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = chance.randrange(len(data))
        at = min(at, chance.choice((len(data) - 1, 400, 60)))
        kind = chance.randrange(6)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at] = chance.choice((0, 1, 127, 128, 255))
        elif kind == 3:
            data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        elif kind == 4:
            data[at:at] = data[at : at + chance.randrange(64)]
        else:
            data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)))
    return bytes(data)


def changed_text(text: str, chance: random.Random) -> bytes:
    """Puts strange pieces in, removes and doubles parts, and sometimes changes bytes."""
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        a, b = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        piece = chance.choice((*PIECES, text[a:b], text[a:b] * 2))
        text = text[:a] + piece + text[chance.choice((a, a + 1, b)) :]
    encoding = chance.choice(("utf-8",) * 6 + ("utf-16", "utf-32", "latin-1"))
    data = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    return changed_bytes(data, chance) if chance.random() < 0.2 else data


def changed_values(values: Any, chance: random.Random) -> Any:
    """Replaces, removes or adds values of JSON."""
    values = copy.deepcopy(values)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        holder = values
        while holder:
            key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
                holder = inner
                continue
            kind = chance.random()
            if kind < 0.15:
                del holder[key]
            elif kind < 0.25 and isinstance(holder, dict):
                holder[chance.choice(("x", "", "class", "é"))] = chance.choice(STRANGE)
            else:
                holder[key] = copy.deepcopy(chance.choice(STRANGE))
            break
    return values


def changed_json(values: Any, chance: random.Random) -> bytes:
    """Changes values, or the text that they are written as."""
    if chance.random() < 0.75:
        return json.dumps(changed_values(values, chance)).encode()
    return changed_text(json.dumps(values), chance)


def encoded_pictures() -> list[bytes]:
    """One picture in every format, and forms of it that decoders treat on their own."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    grey, wide = rgb[..., 0], rgb[..., 0].astype(np.uint16) * 257
    indexed = Image.fromarray(grey % 4).convert("P")
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    forms = [(Image.fromarray(rgb), form, {}) for form in images.FORMATS]
    forms += [
        (Image.fromarray(rgb), "JPEG", {"exif": exif, "progressive": True}),
        (Image.fromarray(rgb), "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(rgb), "TIFF", {"compression": "jpeg"}),
        (Image.fromarray(rgb), "WEBP", {"lossless": True}),
        (Image.fromarray(np.dstack([rgb, grey])), "PNG", {}),
        *((Image.fromarray(wide), form, {}) for form in ("PNG", "TIFF", "PPM")),
        *((Image.fromarray(grey % 4), form, {}) for form in ("PNG", "TIFF", "PPM", "BMP")),
        *((indexed, form, {}) for form in ("PNG", "BMP", "GIF", "TIFF")),
        *((Image.fromarray(grey > 99), form, {}) for form in ("PNG", "BMP", "TIFF")),
        (Image.fromarray(rgb.astype(np.float32)[..., 0]), "TIFF", {}),
        (Image.fromarray(rgb).convert("CMYK"), "JPEG", {}),
    ]
    encoded = []
    for image, form, options in forms:
        file = io.BytesIO()
        image.save(file, form, **options)
        encoded.append(file.getvalue())
    return encoded


def pictures(_: pathlib.Path) -> Try:
    """Picture files, as training and prediction read them."""
    whole = encoded_pictures()
    return lambda chance: functools.partial(
        images.read_image, changed_bytes(chance.choice(whole), chance)
    )


def masks(_: pathlib.Path) -> Try:
    """Mask files: their numbers, palette and classes."""
    whole = encoded_pictures()
    colours = {(0, 0, 0): 0, (1, 2, 3): 1}

    def read(data: bytes, *, coloured: bool) -> None:
        labels.to_train_ids(
            images.read_mask_and_palette(data)[0],
            {0: 0, 1: 1, 2: 2, 3: 3, 255: 255},
            label_map={9: 255},
            colours=colours if coloured else None,
        )

    return lambda chance: functools.partial(
        read, changed_bytes(chance.choice(whole), chance), coloured=chance.random() < 0.3
    )


def arrays(folder: pathlib.Path) -> Try:
    """Arrays given to prediction as .npy."""
    whole = []
    for dtype in ("uint8", "uint16", "int64", "float32", "bool", "complex64", "S3"):
        for shape in ((6, 8), (6, 8, 3), (6, 8, 4)):
            file = io.BytesIO()
            np.save(file, np.ones(shape).astype(dtype))
            whole.append(file.getvalue())
    path = folder / "array.npy"

    def read(data: bytes, value_range: tuple[float, float] | None) -> None:
        path.write_bytes(data)
        predicted.read(path, value_range)

    return lambda chance: functools.partial(
        read,
        changed_bytes(chance.choice(whole), chance),
        chance.choice((None, None, (0, 1), (0, 65535))),
    )


def image_lists(folder: pathlib.Path) -> Try:
    """Lists of images, as VOC and others have them."""
    root = folder / "data"
    for name in ("a", "my b", "deep/c", "#d", "2007_000032"):
        for path in (root / f"images/{name}.jpg", root / f"masks/{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = [Walk(root / "images"), Walk(root / "masks")]
    both = [
        lists.Index(walk.files, walk.folder, root, ending)
        for walk, ending in zip(found, (".jpg", ".png"), strict=True)
    ]
    by_stem, file = found[1].by_stem(), root / "train.txt"
    whole = (
        "2007_000032\na\nmy b\ndeep/c\n",
        "images/a.jpg masks/a.png\n/images/my b.jpg /masks/my b.png\n",
        'image,mask\n"images/my b.jpg","masks/my b.png"\n# nothing\n#d\n',
        "a.jpg\tmasks/deep/c.png\r\n2007_000032;a\r\n",
    )

    def read(data: bytes) -> None:
        file.write_bytes(data)
        lists.read_list(file, *both, by_stem)

    return lambda chance: functools.partial(read, changed_text(chance.choice(whole), chance))


def class_lists(folder: pathlib.Path) -> Try:
    """Lists of classes and maps of ids, as tools write them."""
    file = folder / "classes.txt"
    whole = (
        "road\nsky\nvoid\n",
        "0 road 128 64 128\n1 sky 0 0 255\n255 void\n",
        "name,r,g,b\nroad,128,64,128\nsky,1,2,3\n",
        "# label:color_rgb:parts:actions\nroad:128,64,128::\nbackground:0,0,0::\n",
        '[{"name": "road", "id": 0, "color": [1, 2, 3]}, {"name": "sky", "id": 1}]',
        '{"road": 0, "sky": [1, 2, 3]}',
        "__ignore__\n_background_\ncat\n",
    )

    def read(data: bytes) -> None:
        file.write_bytes(data)
        classes.read_classes(file)

    def make(chance: random.Random) -> Callable[[], Any]:
        if chance.random() < 0.2:
            text = changed_text("{0:0,255:1}", chance).decode(errors="replace")
            return functools.partial(labels.parse_label_map, text)
        return functools.partial(read, changed_text(chance.choice(whole), chance))

    return make


def annotations(folder: pathlib.Path) -> Try:
    """Annotations of COCO, drawn."""
    file, picture = folder / "coco.json", folder / "a.jpg"
    picture.touch()
    index = lists.Index([picture], folder, folder, ".jpg")
    whole = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 9}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {
                **{"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0},
                "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]],
            },
            {
                **{"id": 2, "image_id": 1, "category_id": 5, "iscrowd": 1},
                "segmentation": {"size": [8, 9], "counts": [10, 20, 42]},
            },
        ],
    }

    def read(data: bytes) -> None:
        file.write_bytes(data)
        coco._read.cache_clear()
        if (found := coco.read(file)) is not None:
            for pair in found.pairs(index, [picture])[0]:
                found.draw(pair.image)

    return lambda chance: functools.partial(read, changed_json(whole, chance))


def configurations(_: pathlib.Path) -> Try:
    """Configurations of runs, as config.json and checkpoints hold them."""
    whole = config.to_dict(config.Config(model=SegNet(num_classes=5)))
    whole, known = json.loads(json.dumps(whole)), workdir.model_classes()

    def read(values: Any) -> None:
        config.check(config.from_dict(values, known))

    return lambda chance: functools.partial(read, changed_values(whole, chance))


def command_lines(_: pathlib.Path) -> Try:
    """Fields given on the command line, for a configuration and for a run."""
    whole = config.Config(model=SegNet(num_classes=5))
    fields = [
        f"{part}.{field}={value}"
        for part, values in config.to_dict(whole).items()
        for field, value in values.items()
    ]

    def make(chance: random.Random) -> Callable[[], Any]:
        words = []
        for field in chance.choices(fields, k=chance.choice((1, 1, 2))):
            name, value = field.split("=", 1)
            if chance.random() < 0.2:
                name = changed_text(name, chance).decode(errors="replace")
            else:
                value = changed_text(value, chance).decode(errors="replace")
            words.append(f"--config.{name}={value}")
        named = chance.random() < 0.5

        def read() -> None:
            if named:
                config.check(overrides.read("demo", words))
            else:
                config.check(overrides.changed(whole, words))

        return read

    return make


def caffemodel() -> bytes:
    """A layer "a" with weights of shape 2x3."""
    field = lambda number, content: bytes([number << 3 | 2, len(content)]) + content
    blob = field(7, field(1, bytes([2, 3]))) + field(5, np.arange(6, dtype="<f4").tobytes())
    layer = field(1, b"a") + field(7, blob)
    return bytes([0xA2, 0x06, len(layer)]) + layer  # field 100


def weights(folder: pathlib.Path) -> Try:
    """Files of weights of every kind, and segjax's own folders."""
    tensors = {"a/kernel": np.ones((3, 4), np.float32), "a/bias": np.zeros(4, np.float16)}
    npz, own = io.BytesIO(), folder / "own"
    np.savez(npz, **tensors)
    whole = {
        "safetensors": safetensors.numpy.save(tensors),
        "npz": npz.getvalue(),
        "caffemodel": caffemodel(),
    }
    weight_files.save_weights(own, {"params": {"a": {"kernel": np.ones(3)}}}, {"classes": ["a"]})
    parts = {path.name: path.read_bytes() for path in own.iterdir()}
    try:
        import torch
    except ImportError:
        pass
    else:
        tensors = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(4)}
        for name, old in (("pth", False), ("pt", True)):
            file = io.BytesIO()
            torch.save(tensors, file, _use_new_zipfile_serialization=not old)
            whole[name] = file.getvalue()

    def read(name: str, data: bytes) -> None:
        path = folder / f"weights.{name}"
        path.write_bytes(data)
        pretrained.files.read(path)

    def read_own(changed: dict[str, bytes]) -> None:
        for name, data in changed.items():
            (own / name).write_bytes(data)
        weight_files.load_weights(own)

    def make(chance: random.Random) -> Callable[[], Any]:
        if chance.random() < 0.15:
            name = chance.choice(list(parts))
            return functools.partial(read_own, {**parts, name: changed_bytes(parts[name], chance)})
        name = chance.choice(list(whole))
        return functools.partial(read, name, changed_bytes(whole[name], chance))

    return make


def reports(folder: pathlib.Path) -> Try:
    """The files of a run that its report is made of."""
    run = folder / "run"
    scores = Scores(np.arange(9).reshape(3, 3))
    refined = Evaluation(scores, {2: scores}, 0.5, np.array([0.1, 0.2, 0.3]), 4, 1.5)
    names = ("road", "sky", "car")
    values = dataclasses.replace(refined, refined=refined).to_dict(names)
    settings = config.to_dict(config.Config(model=SegNet(num_classes=3)))
    values |= {"split": "val", "step": 40, "protocol": "whole", "config": settings}
    values |= {"palette": [[1, 2, 3]] * 3, "train_share": [0.2, 0.3, 0.5], "split_images": 4}
    picture = {"file": "a", "id": "a", "kind": "best"}
    picture |= {f"{name}{end}": 0.5 for name in ("mean_iou", "accuracy") for end in ("", "_crf")}
    values["gallery"] = [picture]
    table = f"{','.join(log.COLUMNS)}\n" + "".join(
        f"{i},{1 / i},0.1,2.0,9.5,0.0{',' * (len(log.COLUMNS) - 6)}\n" for i in range(1, 9)
    )
    whole = {
        "config.json": json.loads(json.dumps(settings)),
        "env.json": {"command": "segjax train", "packages": {"jax": "0.10"}, "devices": ["cpu"]},
        "metrics.csv": table,
        "eval/000040.json": json.loads(json.dumps(values)),
    }
    plain = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in whole.items()
    }
    (run / "eval").mkdir(parents=True)

    def read(name: str, data: bytes) -> None:
        for other, text in plain.items():
            (run / other).write_text(text)
        (run / name).write_bytes(data)
        report.render(**report.read(run)).encode()

    read("env.json", plain["env.json"].encode())  # the whole one is shown

    def make(chance: random.Random) -> Callable[[], Any]:
        name = chance.choice((*whole, "eval/000040.json", "eval/000040.json"))
        value = whole[name]
        change = changed_text if isinstance(value, str) else changed_json
        return functools.partial(read, name, change(value, chance))

    return make


# What is tried, and its share of the inputs; slow readers get fewer.
KINDS: dict[str, tuple[Callable[[pathlib.Path], Try], float]] = {
    "pictures": (pictures, 0.22),
    "masks": (masks, 0.22),
    ".npy arrays": (arrays, 0.08),
    "lists of images": (image_lists, 0.1),
    "lists of classes": (class_lists, 0.1),
    "COCO annotations": (annotations, 0.06),
    "configurations": (configurations, 0.06),
    "command lines": (command_lines, 0.03),
    "files of weights": (weights, 0.1),
    "files of a report": (reports, 0.03),
}


def own(error: BaseException) -> bool:
    """Whether an error is a ValueError that a `raise` of segjax has made."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = linecache.getline(last.filename, last.lineno).strip().startswith("raise")
    return isinstance(error, ValueError) and f"{ROOT}/segjax/" in last.filename and raised


def tried(name: str, count: int, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Tries inputs of a kind; returns how many were refused, and the foreign exceptions."""
    make = KINDS[name][0](folder)
    refused, foreign = 0, collections.Counter()
    examples: dict[str, str] = {}
    for number in range(count):
        read = make(random.Random(f"{seed} {name} {number}"))
        try:
            with warnings.catch_warnings(action="ignore"):
                read()
        except Exception as error:
            if own(error):
                refused += 1
                continue
            last = traceback.extract_tb(error.__traceback__)[-1]
            inside = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if f"{ROOT}/segjax/" in frame.filename
            ]
            place = inside[-1] if inside else last
            where_ = f"{pathlib.Path(place.filename).name}:{place.lineno}"
            kind = f"{type(error).__name__} at {where_}"
            foreign[kind] += 1
            examples.setdefault(kind, f"input {number}: {str(error)[:200]}")
    return {
        **{"what": name, "inputs": count, "refused": refused, "foreign": foreign.total()},
        "examples": [f"{kind}, {n} times; {examples[kind]}" for kind, n in foreign.items()],
    }


def table(rows: list[dict[str, Any]]) -> Iterator[rich.table.Table]:
    """A row for each kind, and their sum."""
    found = rich.table.Table(title="fuzzed")
    for column in ("what", "inputs", "refused", "foreign exceptions"):
        found.add_column(column, justify="left" if column == "what" else "right")
    sums = {key: sum(row[key] for row in rows) for key in ("inputs", "refused", "foreign")}
    for row in (*rows, {"what": "total", **sums}):
        found.add_row(row["what"], *(f"{row[key]:,}" for key in sums))
    yield found


def run_all() -> int:
    """Tries what is asked for, prints the table, writes the file; 1 where anything was foreign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=12000, help="in all [12000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    console, rows = rich.console.Console(width=150), []
    Image.MAX_IMAGE_PIXELS = 4_000_000
    log.console.quiet = True
    for name in args.only:
        count = -(-args.inputs * round(100 * KINDS[name][1]) // 100)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(tried(name, count, args.seed, pathlib.Path(folder)))
        for example in rows[-1]["examples"]:
            console.print(f"{name}: {example}", markup=False, highlight=False)
    for shown in table(rows):
        console.print(shown)
    if args.json:
        from faults import where  # which readies processes for its runs

        files.write_json(args.json, {**where(), "seed": args.seed, "rows": rows})
    return int(any(row["foreign"] for row in rows))


if __name__ == "__main__":
    sys.exit(run_all())
