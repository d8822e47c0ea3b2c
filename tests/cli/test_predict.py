"""segjax predict."""

import csv
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from segjax.cli import main as cli
from segjax.cli import predict
from segjax.predict import crf_choice, label_files
from tests.cli.runs import picture, said


def test_predict_writes_the_label_map_of_every_picture(run, seg, tmp_path, capsys):
    folder = tmp_path / "photos"
    names = ("a.png", "below/b.PNG", "below/deeper/c.png")
    paths = [picture(folder / name, seed=i) for i, name in enumerate(names)]
    picture(folder / ".hidden" / "d.png")
    (folder / "notes.txt").write_text("no picture")
    alone = picture(tmp_path / "alone.png", size=(30, 50), seed=9)
    out = tmp_path / "out"
    assert cli.main(["predict", str(run), str(folder), str(alone), "--out", str(out)]) == 0
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    expected = ["a.png", "alone.png", "below/b.png", "below/deeper/c.png", "shares.csv"]
    assert written == expected
    for path, name in zip([*paths, alone], [*names, "alone.png"], strict=True):
        with Image.open(out / name.replace("PNG", "png")) as label:
            np.testing.assert_array_equal(np.asarray(label), seg(path).labels)
            colours = np.asarray(label.convert("RGB"))
        np.testing.assert_array_equal(colours, np.asarray(seg.palette)[seg(path).labels])
    assert said(capsys)[0] == f"4 label maps in {out}\nlook at {out}/a.png\n"
    rows = list(csv.DictReader((out / "shares.csv").read_text().splitlines()))
    assert [row["picture"] for row in rows] == [str(p) for p in (*paths, alone)]
    for row in rows:
        with Image.open(row["label_map"]) as label:
            counts = np.bincount(np.asarray(label).ravel(), minlength=len(seg.classes))
        shares = [float(row[name]) for name in seg.classes]
        np.testing.assert_allclose(shares, counts / counts.sum(), atol=1e-6)


def test_predict_writes_overlays_and_probabilities(run, seg, tmp_path, capsys):
    path, out = picture(tmp_path / "a.png"), tmp_path / "o"
    options = [f"--out={out}", "--overlay", "--alpha=0.3", "--probs"]
    assert cli.main(["predict", str(run), str(path), *options]) == 0
    expected = seg(path, probs=True)
    with Image.open(out / "a_overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), expected.overlay(0.3, legend=True))
    with np.load(out / "a.npz") as saved:
        assert saved["probs"].dtype == np.float16
        np.testing.assert_allclose(saved["probs"], expected.probs, atol=1e-3)
        assert tuple(saved["classes"]) == seg.classes
    assert said(capsys)[0].endswith(f"look at {out}/a_overlay.png\n")


# Nothing is lost.


def content(folder):
    """Every file below a folder, with what is in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_folder(root):
    picture(root / "photos" / "a.png")
    return ["photos"], "photos"


def linked_folder(root):
    same_folder(root)
    (root / "other").symlink_to(root / "photos")
    return ["photos"], "other"


def linked_picture(root):
    picture(root / "photos" / "a.jpg")
    (root / "out").mkdir()
    (root / "out" / "a.png").symlink_to(root / "photos" / "a.jpg")
    return ["photos/a.jpg"], "out"


def hard_link(root):
    picture(root / "photos" / "a.jpg")
    (root / "out").mkdir()
    (root / "out" / "a.png").hardlink_to(root / "photos" / "a.jpg")
    return ["photos"], "out"


def another_input(root):
    picture(root / "photos" / "a.jpg")
    picture(root / "photos" / "b.png")
    picture(root / "photos" / "b" / "c.jpg")
    return ["photos/b/c.jpg", "photos/b.png", "photos/a.jpg"], "photos"


@pytest.mark.parametrize(
    "make", [same_folder, linked_folder, linked_picture, hard_link, another_input]
)
@pytest.mark.parametrize("options", [[], ["--overwrite", "--overlay"]])
def test_a_picture_to_predict_is_never_written_over(run, tmp_path, capsys, make, options):
    given, out = make(tmp_path)
    before = content(tmp_path)
    words = [*(str(tmp_path / g) for g in given), f"--out={tmp_path / out}", *options]
    assert cli.main(["predict", str(run), *words]) == 2
    assert "would be written over the picture" in said(capsys)[1]
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["a.png", "a_overlay.png", "a.npz", "shares.csv"])
def test_files_of_others_are_not_replaced(run, tmp_path, capsys, name):
    path, out = picture(tmp_path / "a.jpg"), tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"precious")
    words = [str(run), str(path), f"--out={out}", "--overlay", "--probs"]
    assert cli.main(["predict", *words]) == 2
    assert f"out/{name} would be replaced, which segjax predict did not write" in said(capsys)[1]
    assert content(out) == {name: b"precious"}
    assert cli.main(["predict", *words, "--overwrite"]) == 0
    written = content(out)
    assert sorted(written) == ["a.npz", "a.png", "a_overlay.png", "shares.csv"]
    assert cli.main(["predict", *words]) == 0  # its own files
    assert content(out).keys() == written.keys()


def test_its_own_label_maps_are_no_pictures(run, tmp_path, capsys):
    folder = tmp_path / "photos"
    picture(folder / "a.jpg")
    words = ["predict", str(run), str(folder), f"--out={folder}/labels", "--overlay"]
    for _ in range(2):
        assert cli.main(words) == 0
        names = ["a.jpg", "labels/a.png", "labels/a_overlay.png", "labels/shares.csv"]
        assert sorted(content(folder)) == names
    assert "skipped 2 files that segjax predict wrote" in said(capsys)[1]


@pytest.mark.parametrize(
    ("pictures", "given", "expected"),
    [
        (["p/a.jpg", "p/a.png"], ["p"], ["a.jpg.png", "a.png.png"]),
        (["l/a.png", "r/a.png"], ["l", "r"], ["l/a.png", "r/a.png"]),
        (["l/a.png", "r/a.png", "r/b.png"], ["l", "r"], ["b.png", "l/a.png", "r/a.png"]),
        (["l/x/a.png", "r/x/a.png"], ["l", "r"], ["l/x/a.png", "r/x/a.png"]),
        (["l/x/a.png", "r/x/a.png"], ["l/x", "r/x/a.png"], ["l/x/a.png", "r/x/a.png"]),
        (["p/a.jpg"], ["p", "p/a.jpg", "p/../p"], ["a.png"]),
        (["p/a.jpg", "p/a_overlay.jpg"], ["p"], ["a.jpg.png", "a_overlay.jpg.png"]),
        (["p/a.jpg", "p/a.png.jpg", "p/a.png"], ["p"], None),
    ],
)
def test_every_picture_has_a_name_of_its_own(tmp_path, pictures, given, expected):
    for name in pictures:
        picture(tmp_path / name)
    words = ["run", *(str(tmp_path / g) for g in given), "--overlay"]
    out = tmp_path / "out"
    jobs = predict.plan(predict.parser().parse_args(words), out)
    assert len(jobs) == len(pictures)
    written = [str(path) for job in jobs for path in job.outputs()]
    assert len(set(written)) == 2 * len(jobs)
    if expected is not None:
        assert sorted(str(job.label_map.relative_to(out)) for job in jobs) == expected


def test_a_test_server_wants_the_names_as_they_are(tmp_path):
    for name in ("l/a.png", "r/a.png"):
        picture(tmp_path / name)
    words = ["run", str(tmp_path / "l"), str(tmp_path / "r"), "--submission=voc"]
    with pytest.raises(ValueError, match=r"would both become .*comp6_test_cls/a\.png; rename one"):
        predict.plan(predict.parser().parse_args(words), tmp_path / "out")


def test_linked_folders_are_followed_once(tmp_path):
    picture(tmp_path / "p" / "a.jpg")
    picture(tmp_path / "disk" / "b.jpg")
    (tmp_path / "p" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "p" / "loop").symlink_to(tmp_path / "p")
    jobs = predict.plan(predict.parser().parse_args(["run", str(tmp_path / "p")]), tmp_path / "o")
    assert [job.name for job in jobs] == ["a", "link/b"]


def animated(path):
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 99)]
    frames[0].save(path, save_all=True, append_images=frames[1:], format="PNG")


def bomb(path):
    # A header that says 30,000 x 30,000 pixels.
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="BMP")
    data = bytearray(buffer.getvalue())
    data[18:26] = (30_000).to_bytes(4, "little") * 2
    path.write_bytes(data)


BROKEN = {
    "empty.png": (lambda p: p.write_bytes(b""), "is empty"),
    "noise.jpg": (lambda p: p.write_bytes(b"no image" * 99), "no image of a known format"),
    "cut.png": (
        lambda p: p.write_bytes(picture(p.with_name("x.png")).read_bytes()[:2000]),
        "truncated or damaged",
    ),
    "animated.png": (animated, "has 2 frames"),
    "huge.bmp": (bomb, "larger than"),
}


def test_predict_skips_what_it_cannot_read_and_says_so_at_the_end(run, tmp_path, capsys):
    folder = tmp_path / "in"
    picture(folder / "a.png")
    for name, (make, _) in BROKEN.items():
        make(folder / name)
    (folder / "x.png").unlink()
    picture(folder / "z.png")
    out = tmp_path / "out"
    assert cli.main(["predict", str(run), str(folder), f"--out={out}"]) == 1
    assert {p.name for p in out.iterdir()} == {"a.png", "shares.csv", "z.png"}
    printed, complaints = said(capsys)
    assert "2 label maps" in printed
    assert f"skipped {len(BROKEN)} of {len(BROKEN) + 2}" in complaints
    for name, (_, reason) in BROKEN.items():
        assert f"{name} " in complaints and reason in complaints


def test_predict_stops_where_it_cannot_write_and_keeps_what_is_finished(
    run, tmp_path, capsys, monkeypatch
):
    """A full disk, at the second picture."""
    folder = tmp_path / "in"
    for i in range(4):
        picture(folder / f"{i}.png", seed=i)
    whole, count = label_files.whole_file, iter(range(9))

    def full(path):
        if next(count) == 1:
            raise ValueError(f"{path} cannot be written: No space left on device")
        return whole(path)

    monkeypatch.setattr(label_files, "whole_file", full)
    out = tmp_path / "out"
    assert cli.main(["predict", str(run), str(folder), f"--out={out}"]) == 2
    assert [p.name for p in out.iterdir()] == ["0.png"]
    assert "1.png cannot be written: No space left" in said(capsys)[1]


def test_predict_says_where_it_may_not_write(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = picture(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(path), f"--out={tmp_path}/file/out"]) == 2
    assert "cannot be written: Not a directory" in said(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["RUN", "missing.png"], "missing.png does not exist"),
        (["RUN", "EMPTY"], "holds no pictures"),
        (["RUN", "A", "COPY", "--submission=voc"], "would both become "),
        (["RUN", "A", "--protocol=nope"], "protocol 'nope' is unknown; accepted are whole"),
        (["RUN", "A", "--step=7"], "no checkpoint '7'; accepted are best, latest, 3"),
        (["RUN", "A", "--submission=voc"], "the voc server takes 21 classes"),
        (["RUN", "A", "--crf=sharp"], "crf='sharp'; accepted are auto, none, learnt"),
        (["NOWHERE", "A"], "does not exist; give the folder of a run"),
        (["EMPTY", "A"], "holds no checkpoint"),
        (["A", "A"], "is a file; give the folder of a run"),
    ],
)
def test_predict_names_mistakes(run, tmp_path, capsys, arguments, named):
    places = {
        "RUN": run,
        "A": picture(tmp_path / "a.png"),
        "COPY": picture(tmp_path / "copy" / "a.png"),
        "EMPTY": tmp_path / "empty",
        "NOWHERE": tmp_path / "nowhere",
    }
    places["EMPTY"].mkdir()
    given = [str(places.get(word, word)) for word in arguments]
    out = tmp_path / "out"
    assert cli.main(["predict", *given, f"--out={out}"]) == 2
    printed, complaints = said(capsys)
    assert complaints.startswith("segjax predict: ") and named in complaints
    assert not printed and not out.exists()


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ([], None),
        (["--crf"], "auto"),
        (["--crf=none"], "none"),
    ],
)
def test_predict_passes_the_crf_on(run, tmp_path, monkeypatch, flags, option):
    asked = []
    monkeypatch.setattr(crf_choice, "choose", lambda choice, *_: asked.append(choice) or ())
    file = picture(tmp_path / "a.png")
    assert cli.main(["predict", *flags, str(run), str(file), f"--out={tmp_path}/out"]) == 0
    assert asked[0] == option


def test_predict_names_a_damaged_checkpoint(run, tmp_path, capsys):
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    files = [p for p in damaged.rglob("*") if p.is_file() and "state" in p.parts]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    path = picture(tmp_path / "a.png")
    assert cli.main(["predict", str(damaged), str(path), f"--out={tmp_path}/out"]) == 2
    assert "checkpoints/3 is damaged" in said(capsys)[1]
