"""report.html: a run on one page that needs neither a server nor a network."""

import base64
import csv
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np

from segjax.files import write_text
from segjax.report import charts
from segjax.report.published import PUBLISHED

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
      ValueError: the folder is no run, has no such evaluation, or cannot be written.
    """
    page = render(**read(workdir, name))
    path = workdir / "report.html"
    write_text(path, page)
    return path


def read(workdir: pathlib.Path, name: str | None = None) -> dict[str, Any]:
    """Returns the arguments of `render` for the folder of a run.

    Raises:
      ValueError: the folder is no run, or has no such evaluation.
    """
    if not (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} holds no config.json; give the folder of a run of train.py")
    files = sorted((workdir / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    named = [path for path in files if name in (None, path.stem)]
    if name is not None and not named:
        known = ", ".join(path.stem for path in files) or "none: run eval.py first"
        raise ValueError(f"{workdir}/eval has no evaluation {name!r}; there are {known}")
    evaluations = {path.stem: _json(path) for path in files}
    chosen = named[-1].stem if named else None
    if chosen and not {"per_class", "confusion", "palette"} <= set(evaluations[chosen]):
        raise ValueError(f"{named[-1]} is of another version: run eval.py again, or remove it")
    table = workdir / "metrics.csv"
    rows = []
    if table.exists():
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    environment = workdir / "env.json"
    return {
        "title": workdir.absolute().name,
        "config": _json(workdir / "config.json"),
        "environment": _json(environment) if environment.exists() else {},
        "metrics": rows,
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
      config: as in config.json.
      environment: as in env.json.
      metrics: the rows of metrics.csv.
      evaluations: of the run, as in its eval folder, oldest first, by name.
      chosen: the one to show.
      pictures: the files of its gallery by name.
    """
    environment_of_templates = jinja2.Environment(
        loader=jinja2.PackageLoader("segjax.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment_of_templates.filters.update(percent=_percent, points=_points, pretty=_pretty)
    evaluation = evaluations[chosen] if chosen else None
    refined = evaluation.get("crf") if evaluation else None
    command = environment.get("command", "")
    stem = re.search(r"--config[= ](?:\S*/)?(\w+)\.py", command)
    published = PUBLISHED.get(stem.group(1), ()) if stem else ()
    split = evaluation.get("split") if evaluation else None
    context = {
        "title": title,
        "config": config,
        "config_name": stem.group(1) if stem else "",
        "environment": environment,
        "curves": curves(metrics),
        "chosen": chosen,
        "evaluation": evaluation,
        "evaluations": evaluations,
        "refined": refined,
        "numbers": NUMBERS,
        "published": published,
        "beside": next((row for row in published if row.split == split), (*published, None)[0]),
        "trimap": trimap_chart(evaluation) if evaluation else "",
        "classes": _classes(evaluation, refined) if evaluation else [],
        "confusions": _confusions(evaluation) if evaluation else [],
        "data": _data(evaluation, refined) if evaluation else None,
    }
    template = environment_of_templates.get_template("report.html")
    room = LIMIT - len(template.render(**context, gallery=[], left_out=0).encode()) - 20_000
    gallery = _gallery(evaluation, pictures) if evaluation else []
    shown = []
    for entry in gallery:
        room -= sum(len(uri) for uri in entry["uris"].values()) + 2000
        if room < 0:
            break
        shown.append(entry)
    # Worst, best and random pictures take turns above, and stand together on the page.
    shown.sort(key=lambda entry: ("worst", "best", "random").index(entry["kind"]))
    return template.render(**context, gallery=shown, left_out=len(gallery) - len(shown))


def curves(metrics: list[Mapping[str, str]]) -> list[str]:
    """Returns the charts of a training run, SVG."""

    def line(column: str) -> charts.Line:
        points = [(float(row["step"]), float(row[column])) for row in metrics if row.get(column)]
        return [x for x, _ in points], [y for _, y in points]

    scores = {NUMBERS[name]: line(name) for name in NUMBERS if name != "boundary_f1"}
    scores["mean IoU with CRF"] = line("crf_mean_iou")
    drawn = [
        charts.line_chart("loss", "step", {"loss": line("loss")}),
        charts.line_chart("scores", "step", scores, percent=True),
        charts.line_chart("learning rate", "step", {"learning rate": line("lr")}),
        charts.line_chart("gradient norm", "step", {"gradient norm": line("grad_norm")}),
        charts.line_chart("images per second", "step", {"images": line("images_per_second")}),
        charts.line_chart(
            "time spent waiting for input", "step", {"wait": line("input_wait")}, percent=True
        ),
    ]
    return [chart for chart in drawn if chart]


def trimap_chart(evaluation: Mapping[str, Any]) -> str:
    """Returns mean IoU by the width of the band around void pixels (DeepLab v1, Fig. 5), SVG.

    Empty for an evaluation without bands.
    """

    def line(numbers: Mapping[str, Any]) -> charts.Line:
        widths = [int(k.split("_")[1]) for k in numbers if re.fullmatch(r"trimap_\d+_mean_iou", k)]
        widths.sort()
        return widths, [numbers[f"trimap_{width}_mean_iou"] or np.nan for width in widths]

    lines = {"network": line(evaluation)}
    if evaluation.get("crf"):
        lines["with CRF"] = line(evaluation["crf"])
    return charts.line_chart(
        "mean IoU in a band around void pixels", "width, pixels", lines, percent=True
    )


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; remove it or make it again") from error


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
            known = None not in (row["iou"], row["refined"])
            row["change"] = row["refined"] - row["iou"] if known else None
        rows.append(row)
    return rows


def _confusions(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The largest cells beside the diagonal."""
    confusion, names = np.array(evaluation["confusion"]), list(evaluation["per_class"])
    truth = confusion.sum(1)
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS]
    cells = [divmod(int(i), len(names)) for i in order]
    return [
        {
            "truth": names[i],
            "predicted": names[j],
            "share": off[i, j] / truth[i],
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


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _pretty(values: Any) -> str:
    return json.dumps(values, indent=1)
