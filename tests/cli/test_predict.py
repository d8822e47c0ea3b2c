"""segjax predict."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from segjax.cli import main as cli
from segjax.predict import crf_choice
from segjax.predict import prediction as labelmaps
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
    assert written == ["a.png", "alone.png", "below/b.png", "below/deeper/c.png"]
    for path, name in zip([*paths, alone], [*names, "alone.png"], strict=True):
        with Image.open(out / name.replace("PNG", "png")) as label:
            np.testing.assert_array_equal(np.asarray(label), seg(path).labels)
            colours = np.asarray(label.convert("RGB"))
        np.testing.assert_array_equal(colours, np.asarray(seg.palette)[seg(path).labels])
    assert said(capsys)[0] == f"4 label maps in {out}\n"


def test_predict_writes_overlays(run, seg, tmp_path):
    path = picture(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(path), f"--out={tmp_path}/o", "--overlay"]) == 0
    with Image.open(tmp_path / "o" / "a_overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), seg(path).overlay())


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
    assert {p.name for p in out.iterdir()} == {"a.png", "z.png"}
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
    whole, count = labelmaps.whole_file, iter(range(9))

    def full(path):
        if next(count) == 1:
            raise ValueError(f"{path} cannot be written: No space left on device")
        return whole(path)

    monkeypatch.setattr(labelmaps, "whole_file", full)
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
        (["RUN", "A", "COPY"], "would both become a.png"),
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
    assert "cannot be read" in said(capsys)[1]
