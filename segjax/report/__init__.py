"""report.html: a run on one page that needs neither a server nor a network."""

import base64
import json
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np

from segjax import paths
from segjax.files import write_text
from segjax.report import charts
from segjax.report.published import PUBLISHED
from segjax.report.reading import (
    KINDS,
    read_config,
    read_environment,
    read_evaluation,
    read_metrics,
)

LIMIT = 6_000_000  # bytes of the page; pictures beyond it are left out
NUMBERS = {
    "mean_iou": "mean IoU",
    "global_accuracy": "global accuracy",
    "class_average": "class average",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "boundary_f1": "boundary F1",
}
PICTURES = ("image.jpg", "truth.png", "prediction.png", "errors.png")
REFINED = ("prediction_crf.png", "errors_crf.png")
CONFUSIONS = 10  # shown as text


def write(workdir: pathlib.Path, name: str | None = None) -> pathlib.Path:
    """Writes `workdir/report.html` from what training and evaluation left in the folder.

    Args:
      workdir: of a run.
      name: of a file in `workdir/eval`, without its ending; the newest when not given.

    Raises:
      ValueError: the folder is no run, has no such evaluation, or cannot be written; or one of its
        files is damaged.
    """
    page = render(**read(workdir, name))
    path = workdir / "report.html"
    write_text(path, page)
    return path


def read(workdir: pathlib.Path, name: str | None = None) -> dict[str, Any]:
    """Returns the arguments of `render` for the folder of a run.

    Raises:
      ValueError: the folder is no run, has no such evaluation, or one of its files is damaged.
    """
    if not (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} holds no config.json; give the folder of a run")
    files = sorted((workdir / "eval").glob("*.json"), key=paths.modified)
    named = [path for path in files if name in (None, path.stem)]
    if name is not None and not named:
        known = ", ".join(path.stem for path in files) or "none: run segjax eval first"
        raise ValueError(f"{workdir}/eval has no evaluation {name!r}; there are {known}")
    chosen = named[-1].stem if named else None
    evaluations = {path.stem: read_evaluation(path) for path in files}
    # A run that went on with other fields has another config.json than its earlier checkpoints.
    config = read_config(workdir / "config.json")
    if chosen:
        config = evaluations[chosen].get("config", config)
    return {
        "title": paths.absolute(workdir).name,
        "config": config,
        "environment": read_environment(workdir / "env.json"),
        "metrics": read_metrics(workdir / "metrics.csv"),
        "evaluations": evaluations,
        "chosen": chosen,
        "pictures": _pictures(workdir / "images" / chosen) if chosen else {},
    }


def render(
    *,
    title: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    metrics: list[Mapping[str, str]],
    evaluations: Mapping[str, Mapping[str, Any]],
    chosen: str | None,
    pictures: Mapping[str, bytes],
) -> str:
    """Returns the page.

    Args:
      title: the name of the run.
      config: of the evaluation, else as in config.json.
      environment: as in env.json.
      metrics: the rows of metrics.csv.
      evaluations: of the run, as in its eval folder, oldest first, by name.
      chosen: the one to show.
      pictures: the files of its gallery by name.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("segjax.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(percent=_percent, points=_points, pretty=_pretty)
    templates.globals.update(difference=_difference)
    evaluation = evaluations[chosen] if chosen else None
    refined = evaluation.get("crf") if evaluation else None
    config_name = _config_name(environment.get("command", ""))
    published = PUBLISHED.get(config_name, ())
    split = evaluation.get("split") if evaluation and _is_whole(evaluation) else None
    alike = {
        name: other
        for name, other in evaluations.items()
        if evaluation and _images(other) == _images(evaluation)
    }
    gallery = _gallery(evaluation, pictures) if evaluation else []
    context = {
        "title": title,
        "config": config,
        "config_name": config_name,
        "environment": environment,
        "curves": curves(metrics),
        "chosen": chosen,
        "evaluation": evaluation,
        "alike": alike,
        "others": {name: other for name, other in evaluations.items() if name not in alike},
        "best": _best(gallery),
        "is_whole": evaluation is None or _is_whole(evaluation),
        "refined": refined,
        "numbers": NUMBERS,
        "published": published,
        "reference": next((row for row in published if row.split == split), None),
        "trimap": trimap_chart(evaluation) if evaluation else "",
        "classes": _classes(evaluation, refined) if evaluation else [],
        "confusions": _confusions(evaluation) if evaluation else [],
        "data": _data(evaluation, refined) if evaluation else None,
        "kinds": KINDS,
    }
    template = templates.get_template("report.html")
    room = LIMIT - len(template.render(**context, gallery=[], left_out=0).encode()) - 20_000
    shown = []
    for entry in gallery:
        room -= sum(len(uri) for uri in entry["uris"].values()) + 2000
        if room < 0:
            break
        shown.append(entry)
    # Each kind has its turn above; on the page the pictures of a kind stand together.
    shown.sort(key=lambda entry: KINDS.index(entry["kind"]))
    return template.render(**context, gallery=shown, left_out=len(gallery) - len(shown))


def curves(metrics: list[Mapping[str, str]]) -> list[str]:
    """Returns the charts of a training run, SVG."""

    def line(column: str) -> charts.Line:
        points = [(float(row["step"]), float(row[column])) for row in metrics if row.get(column)]
        return [x for x, _ in points], [y for _, y in points]

    scores = {NUMBERS[name]: line(name) for name in NUMBERS if name != "boundary_f1"}
    scores["mean IoU with CRF"] = line("crf_mean_iou")
    losses = {"training": "loss", "validation": "val_loss", "validation, CRF": "crf_val_loss"}
    drawn = [
        charts.line_chart("loss", "step", {name: line(losses[name]) for name in losses}),
        charts.line_chart("scores", "step", scores, percent=True),
        charts.line_chart("learning rate", "step", {"learning rate": line("lr")}),
        charts.line_chart("gradient norm", "step", {"gradient norm": line("grad_norm")}),
        charts.line_chart("images per second", "step", {"images": line("images_per_second")}),
        charts.line_chart(
            "time spent waiting for input", "step", {"wait": line("input_wait")}, percent=True
        ),
        charts.line_chart("model FLOPs utilisation", "step", {"MFU": line("mfu")}, percent=True),
    ]
    return [chart for chart in drawn if chart]


def trimap_chart(evaluation: Mapping[str, Any]) -> str:
    """Returns mean IoU by the width of the band around void pixels (DeepLab v1, Fig. 5), SVG.

    Empty for an evaluation without bands.
    """

    def line(numbers: Mapping[str, Any]) -> charts.Line:
        widths = [int(k.split("_")[1]) for k in numbers if re.fullmatch(r"trimap_\d+_mean_iou", k)]
        widths.sort()
        scores = [numbers[f"trimap_{width}_mean_iou"] for width in widths]
        return widths, [np.nan if score is None else score for score in scores]

    lines = {"network": line(evaluation)}
    if evaluation.get("crf"):
        lines["with CRF"] = line(evaluation["crf"])
    return charts.line_chart(
        "mean IoU in a band around void pixels", "width, pixels", lines, percent=True
    )


def _config_name(command: str) -> str:
    """Returns the name of the configuration in a command line, "" where there is none.

    It is given as a name, `--config=segnet_camvid`, or as a file, `--config=mine/segnet_camvid.py`.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark without its partner
        return ""
    for word, following in zip(words, [*words[1:], ""]):
        option, equals, value = word.partition("=")
        if option == "--config":
            return pathlib.PurePath(value if equals else following).stem
    return ""


def _images(evaluation: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns what tells whether two evaluations are of the same images."""
    return evaluation.get("split"), evaluation["images"]


def _is_whole(evaluation: Mapping[str, Any]) -> bool:
    """Whether all images of the split were scored, as far as is known."""
    return evaluation.get("split_images") in (None, evaluation["images"])


def _best(gallery: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the picture that opens the page: of the highest mean IoU, after the CRF if any."""
    scored = [entry for entry in gallery if _score(entry) is not None]
    return max(scored, key=_score, default=None)


def _score(entry: Mapping[str, Any]) -> float | None:
    return entry.get("mean_iou_crf", entry["mean_iou"])


def _pictures(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.*"))}


def _classes(
    evaluation: Mapping[str, Any], refined: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """A dictionary per class, for the table."""
    predicted = np.asarray(evaluation["confusion"], np.float64).sum(0)
    predicted /= max(predicted.sum(), 1)
    training = evaluation.get("train_share") or [None] * len(predicted)
    rows = []
    for i, (name, numbers) in enumerate(evaluation["per_class"].items()):
        row = {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*evaluation["palette"][i]),
            "predicted": predicted[i],
            "training": training[i],
            **numbers,
        }
        if refined:
            row["refined"] = refined["per_class"][name]["iou"]
            row["change"] = _difference(row["refined"], row["iou"])
        rows.append(row)
    return rows


def _confusions(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The largest cells off the diagonal: the most frequent mistakes."""
    confusion, names = np.array(evaluation["confusion"]), list(evaluation["per_class"])
    truth = confusion.sum(1)
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS]
    cells = [divmod(int(i), len(names)) for i in order]
    return [
        {
            "truth": names[i],
            "predicted": names[j],
            "share": off[i, j] / max(truth[i], 1),
            "pixels": int(off[i, j]),
        }
        for i, j in cells
        if off[i, j]
    ]


def _data(evaluation: Mapping[str, Any], refined: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the script of the page draws."""
    confusions = {"network": evaluation["confusion"]}
    if refined:
        confusions["with CRF"] = refined["confusion"]
    return {"classes": list(evaluation["per_class"]), "confusions": confusions}


def _gallery(evaluation: Mapping[str, Any], pictures: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The pictures whose files are there, with data URIs: the first of each kind, the second..."""
    entries = []
    for entry in evaluation.get("gallery", ()):
        names = [*PICTURES, *(REFINED if evaluation.get("crf") else ())]
        found = {name: pictures.get(f"{entry['file']}.{name}") for name in names}
        if None not in found.values():
            uris = {name.split(".")[0]: _uri(name, content) for name, content in found.items()}
            entries.append({**entry, "uris": uris})
    kinds = [entry["kind"] for entry in entries]
    turn = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
    return [entry for _, entry in sorted(zip(turn, entries, strict=True), key=lambda pair: pair[0])]


def _uri(name: str, content: bytes) -> str:
    kind = "jpeg" if name.endswith("jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _pretty(values: Any) -> str:
    return json.dumps(values, indent=1)
