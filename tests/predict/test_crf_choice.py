"""One grammar of the CRF: what each of its values means."""

import pytest

from segjax import crf, models
from segjax.predict import crf_choice, protocols
from segjax.predict.protocols import Protocol

MODEL = models.SegNetBasic(num_classes=3, width=4)
LEARNT, TUNED, MINE = ((crf.Spatial(float(sigma), 1.0),) for sigma in (2, 3, 4))
BOTH = {"tuned": TUNED, "learnt": LEARNT}
V1, WHOLE = protocols.find("deeplab_v1"), Protocol()


@pytest.mark.parametrize(
    ("choice", "protocol", "model", "own", "expected"),
    [
        (None, V1, MODEL, {}, ()),
        (None, V1, MODEL, {"tuned": TUNED}, ()),
        (None, WHOLE, MODEL, BOTH, LEARNT),
        ("auto", V1, MODEL, BOTH, LEARNT),
        ("auto", V1, MODEL, {"tuned": TUNED}, TUNED),
        ("auto", V1, models.DeepLabV2VGG(3), {}, crf.PRESETS["deeplab_v1_largefov"]),
        ("auto", WHOLE, models.DeepLabV2VGG(3), {}, crf.PRESETS["deeplab_v2_vgg16"]),
        ("auto", WHOLE, MODEL, {}, crf.PRESETS["deeplab_v2_resnet101"]),
        ("none", V1, MODEL, BOTH, ()),
        ("learnt", WHOLE, MODEL, BOTH, LEARNT),
        ("tuned", WHOLE, MODEL, BOTH, TUNED),
        ("deeplab_v1_coco", WHOLE, MODEL, BOTH, crf.PRESETS["deeplab_v1_coco"]),
        (MINE, WHOLE, MODEL, BOTH, MINE),
        ((), WHOLE, MODEL, BOTH, ()),
    ],
)
def test_which_crf_is_meant(choice, protocol, model, own, expected):
    assert crf_choice.choose(choice, protocol, model, own) == expected


@pytest.mark.parametrize("choice", ["densecrf", "", True, False, 3, ("auto",), crf.PRESETS])
def test_other_choices_are_refused_with_all_that_are_accepted(choice):
    names = ("auto", "none", "learnt", "tuned", *crf.PRESETS)
    with pytest.raises(ValueError, match=f"accepted are {', '.join(names)}"):
        crf_choice.choose(choice, WHOLE, MODEL, BOTH)


def test_a_crf_that_the_run_does_not_have():
    with pytest.raises(ValueError, match=r"train with --config\.crf\.learn=True"):
        crf_choice.choose("learnt", WHOLE, MODEL, {"tuned": TUNED})
    with pytest.raises(ValueError, match="run segjax tune-crf RUN first"):
        crf_choice.choose("tuned", WHOLE, MODEL, {"learnt": LEARNT})


def test_protocols_name_presets():
    for protocol in protocols.PROTOCOLS.values():
        assert protocol.crf in ("", *crf.PRESETS)
