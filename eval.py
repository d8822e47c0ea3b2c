"""Scores a trained network: python eval.py --workdir=runs/segnet [--split=test]

The configuration is the one the run was trained with; --config.data.dir=... and the like change
it: --config.eval.boundary_f1=True measures along boundaries, --config.eval.trimap_widths="(2,5,10)"
in bands around void pixels. --protocol=deeplab_v3 and others predict as that paper does.
--crf=deeplab_v2_resnet101 and others score what a fully connected CRF makes of it beside it;
--crf or --crf=auto takes the CRF of the run (learnt with it, or tuned by `segjax tune-crf`), else
that of the protocol or of the network's paper. A CRF learnt with the network is always used,
unless --crf=none.

Prints a table with a row per class, and writes eval/ (JSON, CSV, the trimap curve), images/ and
report.html in the workdir. --save=labels writes every label map too; --save=voc and
--save=cityscapes name and number them as those test servers want them.
"""

import pathlib
import sys

from absl import app, flags, logging

from segjax import crf, log
from segjax import training as runs
from segjax.cli import arguments, overrides
from segjax.predict import crf_choice, label_files, protocols
from segjax.workdir import open_run

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run of train.py.")
SPLIT = flags.DEFINE_string(
    "split", None, "A split of the data set; by default the one of the run."
)
STEP = flags.DEFINE_string("step", "best", "The checkpoint: best, latest, or the number of a step.")
PROTOCOL = flags.DEFINE_enum(
    "protocol", "whole", list(protocols.PROTOCOLS), "How images become label maps."
)
CRF = flags.DEFINE_string(
    "crf", None, "auto, none, learnt, tuned, or one of " + ", ".join(crf.PRESETS) + "."
)
SAVE = flags.DEFINE_enum(
    "save", None, ["labels", "voc", "cityscapes"], "Write the label maps to WORKDIR/labels/NAME."
)


def main(_: list[str]) -> None:
    """Evaluates from the command line; a mistake of the user's ends it with one message."""
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file it reads
    try:
        evaluate(flags.FLAGS.config, pathlib.Path(WORKDIR.value).expanduser())
    except (ValueError, OSError) as error:
        sys.exit(f"eval.py: {error}")


def evaluate(config: runs.Config, workdir: pathlib.Path) -> None:
    """Scores a checkpoint on a split."""
    run = open_run(workdir, STEP.value)
    if run.step is None:
        raise ValueError(f"{workdir} holds weights alone; give the folder of a run of train.py")
    step, variables = run.step, run.variables
    protocol = protocols.find(PROTOCOL.value)
    kernels = crf_choice.choose(CRF.value, protocol, config.model, run.crfs)
    split = SPLIT.value or config.data.val_split
    prepared = runs.prepare(config, [split])
    dataset = prepared.dataset
    name = f"{split}_{step:06d}"
    if PROTOCOL.value != "whole":
        name += f"_{PROTOCOL.value}"
    if CRF.value:
        name += f"_crf_{CRF.value}"
    save = None
    if SAVE.value:
        layout = SAVE.value if SAVE.value != "labels" else ""
        folder = workdir / "labels" / name
        save = label_files.writer(layout, folder, dataset.classes, dataset.palette)
    evaluator = runs.evaluator(config, prepared, protocol=protocol, kernels=kernels, save=save)
    result = evaluator(variables, split)
    about = {"split": split, "step": step, "protocol": PROTOCOL.value}
    if kernels:
        about["crf_parameters"] = CRF.value or "learnt"
    runs.write_evaluation(result, config, prepared, workdir, name, **about)
    runs.write_report(workdir, name)
    log.console.print(result.table(dataset.classes, f"{workdir}, step {step}, {split}"))


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; `--config.field=value` changes the configuration of the run."""
    argv = arguments.with_names(argv)
    workdir = overrides.value_of(argv, "workdir")
    try:
        if workdir is None and not {"--help", "--helpfull", "--helpshort", "-h"} & set(argv):
            raise ValueError("--workdir is missing; give the folder of a run of train.py")
        step = overrides.value_of(argv, "step") or "best"
        config = open_run(workdir, step).config if workdir else None
    except ValueError as error:
        sys.exit(f"eval.py: {error}")
    return overrides.parse(argv, config)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
