"""The report, as text and in a browser."""

import copy
import dataclasses
import functools
import json
import random
import re
import shutil
import types

import cv2
import numpy as np
import pytest

from segjax import metrics, report
from segjax.config import Config, Data, to_dict
from segjax.data import datasets
from segjax.evaluate import scoring
from segjax.evaluate.step import Outcome, Scored
from segjax.models import SegNetBasic
from segjax.report import charts, evaluation_files, pictures, reading
from tests import browser as browsers

CLASSES = ("sky", "road", "<b>pole</b>", "car", "never")
PALETTE = ((90, 140, 200), (128, 64, 128), (220, 220, 0), (0, 0, 142), (1, 2, 3))
IMAGES = 10


def scene(number):
    """An image with the label 255 around a car, and two guesses at it, the second a better one."""
    rng = np.random.default_rng(number)
    label = np.zeros((60, 80), np.int32)
    label[30:] = 1
    label[10:40, 20:24] = 2
    cv2.rectangle(label, (40, 28), (62, 42), 255, -1)
    cv2.rectangle(label, (42, 30), (60, 40), 3, -1)
    guess = np.where(label == 255, 1, label)
    wrong = rng.random(label.shape) < 0.04 * (number + 1)
    first = np.where(wrong, (guess + 1) % 4, guess)
    second = np.where(wrong & (rng.random(label.shape) < 0.3), (guess + 1) % 4, guess)
    image = np.asarray(PALETTE, np.uint8)[guess] + rng.integers(0, 20, (60, 80, 3), np.uint8)
    return image, label, first, second


@dataclasses.dataclass
class Batch:
    image: np.ndarray
    label: np.ndarray
    ids: list
    sizes: np.ndarray


def batches(size):
    scenes = [scene(i) for i in range(IMAGES)]
    for start in range(0, IMAGES, size):
        part = scenes[start : start + size]
        image, label, *_ = (np.stack(arrays)[None] for arrays in zip(*part, strict=True))
        ids = [f"<i>scene</i>/{start + i}" for i in range(len(part))]
        yield Batch(image, label, ids, np.full((len(part), 2), (60, 80)))


def step(variables, batch):
    """Both guesses at a batch, told by the noise in its images."""
    scenes = [scene(i) for i in range(IMAGES)]
    chosen = [next(s for s in scenes if np.array_equal(s[0], image)) for image in batch["image"][0]]
    outcome = []
    for version in (2, 3)[: 1 + variables["crf"]]:
        prediction = np.stack([s[version] for s in chosen])[None]
        count = functools.partial(metrics.confusion_matrix, prediction=prediction, num_classes=5)
        counts = {"all": count(batch["label"])}
        for width in (1, 3, 6):
            trimap = metrics.trimap(batch["label"][0], width)[None]
            counts[f"trimap_{width}"] = count(trimap)
        outcome.append(Scored(counts, np.array([0.5, 1.0]), prediction))
    return Outcome(*outcome)


def evaluated(crf, size=4):
    return scoring.evaluate(
        step, {"crf": crf}, batches(size), num_classes=5, boundary=True, pictures=4, every=2
    )


def write_run(folder, crf=True):
    """What train.py and eval.py leave behind."""
    folder.mkdir()
    config = Config(model=SegNetBasic(num_classes=5), data=Data(name="camvid"))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    command = "python train.py --config=configs/segnet_basic_camvid.py --workdir=runs/a"
    environment = {"command": command, "packages": {"jax": "0.10"}, "devices": ["cpu", "cpu"]}
    (folder / "env.json").write_text(json.dumps(environment))
    lines = ["step,loss,lr,mean_iou"]
    lines += [f"{i},{2 / i},{0.1 - i / 1e4},{'' if i % 50 else i / 500}" for i in range(5, 400, 5)]
    (folder / "metrics.csv").write_text("\n".join(lines))
    entry = datasets.DATASETS["camvid"]
    dataset = dataclasses.replace(entry, classes=CLASSES, palette=PALETTE)
    summary = types.SimpleNamespace(pixels=[100, 200, 10, 90, 0])
    prepared = types.SimpleNamespace(dataset=dataset, summaries={"train": summary})
    for name, with_crf in (("000200", False), ("val_000400", crf)):
        about = {"split": "val", "step": int(name[-6:]), "protocol": "whole"}
        evaluation_files.write_evaluation(
            evaluated(with_crf), config, prepared, folder, name, **about
        )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def page(run):
    return report.write(run).read_text()


def test_page_is_one_file_that_asks_for_nothing(page):
    assert len(page.encode()) < report.LIMIT
    assert page.count("<html") == 1
    for attribute in re.findall(r'\b(?:src|href|srcset|action)="([^"]*)"', page):
        assert attribute.startswith(("data:", "#")), attribute
    assert "@import" not in page and "url(" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_names_are_text_and_not_markup(page):
    assert "<b>pole</b>" not in page and "&lt;b&gt;pole" in page
    assert "<i>scene</i>" not in page and "&lt;i&gt;scene" in page


def test_numbers_are_those_of_the_evaluation(run, page):
    values = json.loads((run / "eval" / "val_000400.json").read_text())
    for key in ("mean_iou", "global_accuracy", "class_average", "boundary_f1"):
        assert f"<strong>{100 * values[key]:.1f}</strong>" in page
        assert f"with CRF {100 * values['crf'][key]:.1f}" in page
    # The published score is of another split: it stands in the table alone.
    assert "<span>published" not in page and "published: released tutorial" in page
    assert "--config=configs/segnet_basic_camvid.py" in page
    assert "training share" not in page and values["train_share"] == [0.25, 0.5, 0.025, 0.225, 0]
    # A class that never occurs has no score, which is a dash and sorts last.
    assert re.search(r'data-value="never".*?data-value="">–', page, re.DOTALL)


def test_gallery_has_the_worst_the_best_and_others(run):
    values = json.loads((run / "eval" / "val_000400.json").read_text())
    kinds = [(entry["kind"], entry["id"].split("/")[-1]) for entry in values["gallery"]]
    # The noise grows with the number; every second is a candidate for the random ones.
    assert kinds == [
        *(("worst", "9"), ("worst", "8"), ("best", "0"), ("best", "1")),
        *(("random", "2"), ("random", "4"), ("random", "6")),
    ]
    for entry in values["gallery"]:
        assert entry["mean_iou_crf"] > entry["mean_iou"]
        picture = cv2.imread(str(run / "images" / "val_000400" / f"{entry['file']}.truth.png"))
        expected = np.asarray(PALETTE, np.uint8)[0][::-1]
        np.testing.assert_array_equal(picture[0, 0], expected)
    assert values["gallery"][0]["mean_iou"] < values["gallery"][2]["mean_iou"]


def test_evaluation_is_the_same_for_any_batch():
    one, other = evaluated(True, size=1), evaluated(True, size=7)
    np.testing.assert_array_equal(one.scores.confusion, other.scores.confusion)
    assert one.to_dict(CLASSES) == other.to_dict(CLASSES)
    assert [(e.kind, e.id) for e in one.examples] == [(e.kind, e.id) for e in other.examples]


def test_errors_of_the_gallery_are_striped(run):
    picture = cv2.imread(str(run / "images/val_000400/worst_00.errors.png"), cv2.IMREAD_UNCHANGED)
    colours = {tuple(colour) for colour in picture[..., [2, 1, 0, 3]].reshape(-1, 4).tolist()}
    assert colours == {(0, 0, 0, 0), pictures.WRONG, pictures.STRIPE, pictures.VOID}


def test_page_opens_with_the_best_picture(run, page):
    values = json.loads((run / "eval" / "val_000400.json").read_text())
    best = max(values["gallery"], key=lambda entry: entry["mean_iou_crf"])
    opening = page.split("<main>")[1].split("<section")[0]
    assert (
        best["id"].split("/")[-1] in opening and f"IoU {100 * best['mean_iou_crf']:.1f}" in opening
    )
    assert opening.count("<img") == 3


def test_only_evaluations_of_the_same_images_stand_side_by_side(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    values = json.loads((folder / "eval" / "000200.json").read_text())
    other = values | {"images": 3, "split_images": IMAGES}
    (folder / "eval" / "few.json").write_text(json.dumps(other))
    names = lambda part: re.findall(r'<th scope="row">(\w+)</th>', part)
    table = lambda page: page.split("Other evaluations")[1].split("</table>")[0]
    same, different = table(report.write(folder, "val_000400").read_text()).split("Of other images")
    assert names(same) == ["000200", "val_000400"] and names(different) == ["few"]
    page = report.write(folder, "few").read_text()
    same, different = table(page).split("Of other images")
    assert names(same) == ["few"] and names(different) == ["000200", "val_000400"]
    (folder / "env.json").unlink()  # and so without published numbers
    page = report.write(folder, "few").read_text()
    assert names(table(page).split("Of other images")[1]) == ["000200", "val_000400"]
    shutil.copy(run / "env.json", folder)
    (folder / "eval" / "few.json").write_text(json.dumps(values | {"split": "test"}))
    assert "<span>published 46.3</span>" in report.write(folder, "few").read_text()
    few = values | {"split": "test", "split_images": 99}
    (folder / "eval" / "few.json").write_text(json.dumps(few))
    page = report.write(folder, "few").read_text()
    # A part of a split is not set beside the published score of the whole.
    assert f"{IMAGES} of 99 images" in page
    assert "<span>published" not in page and "published: released tutorial" in page


@pytest.mark.parametrize(
    "command",
    [
        "segjax train --config=segnet_basic_camvid --config.data.dir=CamVid",
        "segjax train --config segnet_basic_camvid",
        "python train.py '--config=a folder/segnet_basic_camvid.py' --workdir=runs/a",
    ],
)
def test_published_scores_are_found_by_the_name_of_the_configuration(run, tmp_path, command):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("images"))
    environment = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps(environment | {"command": command}))
    page = report.write(folder).read_text()
    assert "<code>segnet_basic_camvid</code>" in page and "published: released tutorial" in page
    for other in ("python own.py", "segjax train --config", "segjax train 'a"):
        (folder / "env.json").write_text(json.dumps(environment | {"command": other}))
        page = report.write(folder).read_text()
        assert ", configuration <code>" not in page and "published: " not in page


def test_the_configuration_shown_is_that_of_the_evaluation(run, tmp_path):
    """The run may have gone on with another one."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("images"))
    values = json.loads((folder / "config.json").read_text())
    values["data"]["name"] = "ade20k"
    (folder / "config.json").write_text(json.dumps(values))
    assert "SegNetBasic on camvid" in report.write(folder).read_text()
    shutil.rmtree(folder / "eval")
    assert "SegNetBasic on ade20k" in report.write(folder).read_text()


def test_losses_of_training_and_validation_share_a_chart():
    rows = [{"step": "1", "loss": "2.0"}, {"step": "2", "val_loss": "1.5", "crf_val_loss": "1.4"}]
    chart = report.curves(rows)[0]
    assert all(name in chart for name in (">training<", ">validation<", ">validation, CRF<"))
    # Told apart without colours, too.
    assert len(set(re.findall(r'<polyline[^>]*stroke-dasharray="([^"]*)"', chart))) == 3


def damage(values, rng):
    """Changes, removes or adds something somewhere in JSON values."""
    values = copy.deepcopy(values)
    holder = values
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = rng.choice(list(keys))
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            continue
        if rng.random() < 0.2:
            del holder[key]
        else:
            strange = [
                None,
                True,
                -1,
                0.5,
                1e300,
                10**30,
                "x",
                "\ud800",
                "<b>",
                [],
                {},
                [1],
                {"a": 1},
            ]
            holder[key] = rng.choice(strange)
        return values


def test_a_damaged_evaluation_is_named_or_shown(run, tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("images"))
    path = folder / "eval" / "val_000400.json"
    values = json.loads(path.read_text())
    refused = 0
    for _ in range(400):
        path.write_text(json.dumps(damage(values, rng)))
        try:
            arguments = report.read(folder)
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error)
            refused += 1
        else:
            report.render(**arguments).encode()
    assert 200 < refused < 400
    text = json.dumps(values).encode()
    for content in (b"", b"\xff\xfe", text[:-40], b"[" * 100_000, b"null", b"[1]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"val_000400\.json is"):
            report.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no table"),
        (b"\xff\xfe\x00", "is no table"),
        (b"loss,lr\n1,2\n", "no column 'step'"),
        (b"step,loss\n1,much\n2,0.5\n", "damaged in line 2"),
        (b"step,loss\n1\n2,0.5\n", "damaged in line 2"),
        (b"step,loss\n,0.5\n2,0.5\n", "damaged in line 2"),
    ],
)
def test_a_damaged_table_of_metrics_is_named(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        reading.read_metrics(path)
    assert type(raised.value) is ValueError and str(path) in str(raised.value)


@pytest.mark.parametrize("tail", [b"3,0.", b"3", b"\0\0\0", b"3,0.2,"])
def test_what_a_kill_left_of_a_row_is_left_out(tmp_path, tail):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss,lr\n1,2,\n2,1,\n" + tail)
    rows = reading.read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows][:2] == ["1", "2"] and len(rows) <= 3


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "[]"), ("config.json", '{"model": 1}'), ("env.json", '{"command": 3}')],
)
def test_other_damaged_files_are_named(run, tmp_path, name, content):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("images"))
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        report.read(folder)


def test_pictures_are_left_out_where_the_page_would_be_too_large(run, monkeypatch):
    whole = report.render(**report.read(run))
    monkeypatch.setattr(report, "LIMIT", len(whole))  # with the reserve it is not enough
    small = report.render(**report.read(run))
    assert len(small) < len(whole)
    assert 0 < small.count("<figure data-kind") < whole.count("<figure data-kind")
    # The first of each kind stay.
    assert all(f'<figure data-kind="{kind}"' in small for kind in ("worst", "best", "random"))
    assert "left out to keep this page small" in small


def test_an_older_evaluation_can_be_shown(run):
    page = report.write(run, "000200").read_text()
    assert "with CRF" not in page.split('id="curves"')[1]
    report.write(run)


def test_a_run_without_evaluation_has_a_report(tmp_path):
    folder = write_run(tmp_path / "b")
    shutil.rmtree(folder / "eval")
    (folder / "metrics.csv").unlink()
    (folder / "env.json").unlink()
    page = report.write(folder).read_text()
    assert "eval.py --workdir" in page and "<svg" not in page


def test_an_evaluation_of_another_version_is_named(tmp_path):
    folder = write_run(tmp_path / "c")
    (folder / "eval" / "val_000400.json").write_text("{}")
    with pytest.raises(ValueError, match=r"val_000400\.json is damaged or of another version"):
        report.write(folder, "val_000400")


def test_mistakes_are_named(tmp_path, run):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match="no evaluation 'test'; there are 000200, val_000400"):
        report.write(run, "test")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        report.write(tmp_path)


def test_charts_leave_out_what_is_not_finite():
    assert charts.line_chart("loss", "step", {"loss": ([1, 2], [np.nan, np.inf])}) == ""
    chart = charts.line_chart("a < b", "step", {"x": ([1, 2, 3], [1.0, np.nan, 3.0])})
    assert "a &lt; b" in chart and chart.count("<circle") == 2
    assert charts.line_chart("one", "step", {"x": ([5], [0.5])}).count("<circle") == 1
    long = charts.line_chart("long", "step", {"x": (range(10_000), np.arange(1e4) % 7)})
    assert len(long) < 8000


def test_names_of_lines_stay_on_the_chart():
    names = ("mean IoU", "global accuracy", "class average", "frequency-weighted IoU")
    chart = charts.line_chart("scores", "step", {name: ([1, 2], [0.1, 0.2]) for name in names})
    places = {}
    for name in names:
        found = re.search(rf'<text x="(\d+)" y="(\d+)">{name}</text>', chart)
        x, y = places[name] = tuple(map(int, found.groups()))
        assert x + 6 * len(name) < charts.WIDTH - charts.RIGHT
    assert len({y for _, y in places.values()}) == 2
    assert int(re.search(r'viewBox="0 0 \d+ (\d+)"', chart).group(1)) > y
    one = charts.line_chart("loss", "step", {"loss": ([1, 2], [0.1, 0.2])})
    assert f'viewBox="0 0 {charts.WIDTH} {charts.HEIGHT}"' in one


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.03, 1.1, [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
        (0, 40_000, [0, 10_000, 20_000, 30_000, 40_000]),
        (0.001, 0.0099, [0, 0.002, 0.004, 0.006, 0.008, 0.01]),
        (3, 3, [0, 1, 2, 3, 4, 5, 6]),
        (0.1, 0.1 + 1e-9, [0, 0.05, 0.1, 0.15, 0.2]),  # a constant learning rate
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == expected


# In a browser.


@pytest.fixture(scope="module")
def browser(run, page, tmp_path_factory):
    with browsers.start(run, tmp_path_factory.mktemp("chromium")) as driver:
        driver.address += "report.html"
        yield driver


@pytest.fixture
def opened(browser):
    browsers.forget(browser)
    browser.get(browser.address)
    return browser


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def texts(driver, selector):
    return [element.text for element in find(driver, selector)]


def test_browser_asks_for_the_page_alone_and_reports_no_error(opened):
    assert opened.get_log("browser") == []
    urls = {url for url in browsers.requests(opened) if not url.startswith("data:")}
    assert urls == {opened.address}
    assert set(opened.asked) == {"/report.html"}


def test_browser_sorts_classes(opened):
    names = "#classes tbody th"
    assert texts(opened, names) == list(CLASSES)
    name, iou = find(opened, "#classes th button")[:2]
    iou.click()
    header = "#classes thead th:nth-child(2)"
    assert find(opened, header)[0].get_attribute("aria-sort") == "descending"
    values = [float(row.split("\n")[0]) for row in texts(opened, "#classes td:nth-child(2)")[:-1]]
    assert values == sorted(values, reverse=True)
    assert texts(opened, names)[-1] == "never"
    iou.send_keys("\n")  # from the keyboard, the other way
    assert find(opened, header)[0].get_attribute("aria-sort") == "ascending"
    again = [float(row.split("\n")[0]) for row in texts(opened, "#classes td:nth-child(2)")[:-1]]
    assert again == sorted(again) and texts(opened, names)[-1] == "never"
    name.click()
    assert texts(opened, names) == sorted(CLASSES)
    assert find(opened, header)[0].get_attribute("aria-sort") is None


def box(driver, selector):
    script = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
    return driver.execute_script(script, selector)


def test_browser_shows_counts_of_the_confusion(opened, run):
    from selenium.webdriver import ActionChains, Keys

    values = json.loads((run / "eval" / "val_000400.json").read_text())
    heat = find(opened, "#heat")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", heat)
    side = box(opened, "#heat")["width"]
    cell = 44  # the largest; five classes take it
    offset = side / 2 - cell / 2  # the last cell, from the middle of the canvas
    ActionChains(opened).move_to_element_with_offset(
        heat, offset - cell, offset - 2 * cell
    ).perform()
    count = values["confusion"][2][3]
    readout = find(opened, "#cell")[0]
    assert readout.text.startswith("<b>pole</b> taken for car: ")
    assert readout.text.endswith(f" {count:,} pixels")
    share = 100 * count / sum(values["confusion"][2])
    assert f"{share:.2f} %" in readout.text
    heat.send_keys(Keys.ARROW_UP)
    assert readout.text.startswith("road taken for car: ")
    find(opened, "input[name=confusion]")[1].click()
    assert readout.text.endswith(f" {values['crf']['confusion'][1][3]:,} pixels")


def test_browser_compares_truth_and_prediction(opened):
    from selenium.webdriver import Keys

    figure = "#gallery figure"
    shown = lambda kind: find(opened, f"{figure} img.{kind}")[0].is_displayed()
    style = lambda kind, name: find(opened, f"{figure} img.{kind}")[0].value_of_css_property(name)
    assert shown("truth") and shown("prediction") and not shown("wrong")
    caption = lambda: "".join(texts(opened, "#gallery > p"))
    assert caption() == "Left of the line the truth, right of it the prediction."
    slider = find(opened, ".slider")[0]
    for _ in range(20):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert style("prediction", "clip-path") == "inset(0px 0px 0px 70%)"
    assert style("truth", "clip-path") == "inset(0px 30% 0px 0px)"
    opacity = find(opened, "#opacity")[0]
    opacity.send_keys(Keys.HOME)
    assert style("prediction", "opacity") == "0"
    opacity.send_keys(Keys.END)
    assert style("truth", "opacity") == "1"
    find(opened, "#errors")[0].click()
    assert shown("wrong") and not shown("truth") and not shown("prediction")
    assert caption() == "Wrong pixels are orange with dark stripes, void pixels grey."
    find(opened, "#crf")[0].click()
    assert shown("wrong.refined") and not shown("wrong:not(.refined)")
    find(opened, "#errors")[0].click()
    assert shown("prediction.refined") and shown("truth")
    assert not shown("prediction:not(.refined)")


def test_browser_filters_pictures(opened):
    kinds = lambda: {
        f.get_attribute("data-kind") for f in find(opened, "figure[data-kind]") if f.is_displayed()
    }
    assert kinds() == {"worst", "best", "random"}
    for option in find(opened, "#kinds option")[1:]:
        option.click()
        assert kinds() == {option.text}


@pytest.mark.parametrize("width", [390, 1280])
def test_browser_needs_no_scrolling_sideways(opened, width):
    metrics_ = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics_)
    try:
        opened.get(opened.address)
        across, inner = opened.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert across <= inner == width
        assert box(opened, "#heat")["right"] <= width
        if width == 390:  # a table wider than the screen is scrolled by the keyboard, too
            from selenium.webdriver import Keys
            from selenium.webdriver.support import wait

            wide = find(opened, "#classes .wide")[0]
            wide.send_keys(Keys.ARROW_RIGHT)
            moved = lambda _: opened.execute_script("return arguments[0].scrollLeft", wide) > 0
            wait.WebDriverWait(opened, 5).until(moved)
        # Everything to be touched is large enough for a finger.
        for selector in (".slider", "#kinds", ".tools label"):
            assert box(opened, selector)["height"] >= 28, selector
        assert opened.get_log("browser") == []
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
