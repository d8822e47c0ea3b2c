"""Which CRF refines a prediction: one option with the same values on every command and in Python.

    --crf, --crf=auto, --crf=none, --crf=learnt, --crf=tuned, --crf=PRESET
    seg(image, crf="auto")  # or "none", "learnt", "tuned", a key of segjax.crf.PRESETS, kernels

Without the option the CRF that was learnt with the network is used, if there is one.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

from segjax import crf, crf_rnn
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.predict.protocols import Protocol

Choice = str | Kernels | None

AUTO, NONE, LEARNT, TUNED = "auto", "none", "learnt", "tuned"

# The preset of the network's paper, where the protocol names none.
PAPERS = {"DeepLabV1": "deeplab_v1_largefov", "DeepLabV2VGG": "deeplab_v2_vgg16"}
DEFAULT = "deeplab_v2_resnet101"

TUNED_FILE = "crf.json"  # in the folder of a run
LETTERS = ("w1", "alpha", "beta", "w2", "gamma")  # in it; arguments of crf.deeplab_kernels


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
      own: CRFs of the run, of `own_crfs`.

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


def own_crfs(
    config: Config, variables: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Kernels]:
    """Returns the CRFs of a run: "learnt" with the network, "tuned" by `segjax tune-crf`.

    Args:
      config: of the run.
      variables: of the run.
      folder: of the run, or of weights; a result of tuning is its crf.json.

    Raises:
      ValueError: crf.json is damaged.
    """
    own: dict[str, Kernels] = {}
    if config.crf.learn:
        own[LEARNT] = crf_rnn.kernels(variables["params"]["crf"], config.crf)
    path = folder / TUNED_FILE
    if path.exists():
        try:
            point = json.loads(path.read_text())
            own[TUNED] = crf.deeplab_kernels(*(float(point[letter]) for letter in LETTERS))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no result of segjax tune-crf: {error!r}; remove it or tune again"
            ) from error
    return own
