"""Which CRF refines a prediction: one option with the same values on every command and in Python.

    --crf, --crf=auto, --crf=none, --crf=learnt, --crf=tuned, --crf=PRESET

or

    seg(image, crf="auto")  # or "none", "learnt", "tuned", a key of segjax.crf.PRESETS, kernels

Without the option the CRF that was learnt with the network is used, if there is one.
"""

from collections.abc import Mapping
from typing import Any, get_args

from segjax import crf
from segjax.crf_rnn import Kernels
from segjax.predict.protocols import Protocol

Choice = str | Kernels | None

AUTO, NONE, LEARNT, TUNED = "auto", "none", "learnt", "tuned"

# The preset of the network's paper, where the protocol names none.
PAPERS = {"DeepLabV1": "deeplab_v1_largefov", "DeepLabV2VGG": "deeplab_v2_vgg16"}
DEFAULT = "deeplab_v2_resnet101"


def choose(
    choice: Choice, protocol: Protocol, model: Any, own: Mapping[str, Kernels] | None = None
) -> Kernels:
    """Returns the kernels that an option `crf` means, () for no CRF.

    Args:
      choice: None for the CRF that was learnt with the network, if there is one; "auto" for the
        first of these that there is: learnt with the network, tuned on it, the protocol's, that of
        the network's paper, DeepLab v2's; "none", "learnt", "tuned" or a key of
        `segjax.crf.PRESETS`; or kernels.
      protocol: of the prediction.
      model: the network.
      own: CRFs of the run, `workdir.Run.crfs`.

    Raises:
      ValueError: the choice is none of these, or the run has no CRF of that name.
    """
    own = own or {}
    if choice is None:
        return own.get(LEARNT, ())
    if isinstance(choice, tuple | list) and all(
        isinstance(k, get_args(crf.Kernel)) for k in choice
    ):
        return tuple(choice)
    if choice == NONE:
        return ()
    if choice == AUTO:
        paper = protocol.crf or PAPERS.get(type(model).__name__, DEFAULT)
        return next((own[name] for name in (LEARNT, TUNED) if name in own), crf.PRESETS[paper])
    if choice == LEARNT and choice not in own:
        raise ValueError(
            "crf='learnt': no CRF was learnt with this network; train with --config.crf.learn=True"
        )
    if choice == TUNED and choice not in own:
        raise ValueError("crf='tuned': this run has no tuned CRF; run segjax tune-crf RUN first")
    known = {**crf.PRESETS, **own}
    if not isinstance(choice, str) or choice not in known:
        names = ", ".join((AUTO, NONE, LEARNT, TUNED, *crf.PRESETS))
        kernels = "" if isinstance(choice, str) else ", or a tuple of kernels"
        raise ValueError(f"crf={choice!r}; accepted are {names}{kernels}")
    return known[choice]
