"""segjax eval: scores a trained network on a split."""

import argparse
from collections.abc import Sequence

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax eval --workdir=runs/segnet
  segjax eval --workdir=runs/segnet --split=test --config.eval.boundary_f1=True
  segjax eval --workdir=runs/deeplab --protocol=deeplab_v3 --crf --save=voc

The network is scored as its checkpoint was trained, configuration and classes; --config.FIELD=VALUE
changes a field of that, for example --config.data.dir=CamVid, or
--config.eval.trimap_widths="(2,5,10)" for scores in bands around void pixels. The run's own
data.num_val counts for its data.val_split; of other splits all images are scored.

Prints a table with a row per class, and writes eval/ (JSON, CSV, the trimap curve), images/ and
report.html in the folder of the run.
"""


def main(argv: Sequence[str]) -> None:
    """Scores a checkpoint on a split."""
    command = parser()
    arguments, changes = shared.parsed(command, shared.with_names(argv))
    with shared.joined(arguments):
        score(arguments, changes)


def score(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
    """Scores the checkpoint that the arguments name, with changes of its configuration."""
    from segjax import hosts, log, rows, training
    from segjax.cli import overrides
    from segjax.evaluate.scoring import evaluator
    from segjax.predict import crf_choice, label_files, protocols
    from segjax.report.evaluation_files import write_evaluation, write_report
    from segjax.workdir import open_run

    run = open_run(arguments.workdir, arguments.step)
    workdir = run.folder  # also where a folder of checkpoints was given
    if run.step is None:
        raise ValueError(f"{workdir} holds weights alone; give the folder of a run of segjax train")
    run.config.train.rows = rows.possible(run.config.train.rows)
    if arguments.split not in (None, run.config.data.val_split):
        run.config.data.num_val = 0  # of the split to validate on
    config = overrides.changed(run.config, changes)
    protocol = protocols.find(arguments.protocol)
    kernels = crf_choice.choose(arguments.crf, protocol, config.model, run.crfs)
    split = arguments.split or config.data.val_split
    about = {"split": split, "step": run.step, "protocol": arguments.protocol}
    link = hosts.link()
    if link is not None:
        link.same({**about, "--crf": arguments.crf, "--save": arguments.save})
        training.compare(config, link)
    config, prepared = training.prepare(config, [split], run.classes)
    if link is not None:
        training.compare(config, link, prepared)
    dataset = prepared.dataset
    name = f"{split}_{run.step:06d}"
    if arguments.protocol != "whole":
        name += f"_{arguments.protocol}"
    if arguments.crf:
        name += f"_crf_{arguments.crf}"
    save = None
    if arguments.save:
        layout = arguments.save if arguments.save != "labels" else ""
        folder = workdir / "labels" / name
        save = label_files.writer(layout, folder, dataset.classes, dataset.palette)
    evaluate = evaluator(
        config,
        prepared,
        protocol=protocol,
        kernels=kernels,
        class_weights=run.class_weights,
        save=save,
    )
    result = evaluate(run.variables, split)
    log.console.print(result.table(dataset.classes, f"{workdir}, step {run.step}, {split}"))
    if kernels:
        about["crf_parameters"] = arguments.crf or crf_choice.LEARNT
    write_evaluation(result, config, prepared, workdir, name, **about)
    write_report(workdir, name)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("eval", EXAMPLES)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of a run")
    parser.add_argument("--split", help="of the data set [the one to validate on]")
    shared.step(parser)
    shared.protocol(parser)
    shared.crf(parser)
    parser.add_argument(
        "--save",
        choices=("labels", "voc", "cityscapes"),
        help="write the label maps to DIR/labels, as they are or as that test server wants them",
    )
    parser.add_argument("--config.FIELD", metavar="VALUE", help="changes a field of the run's")
    shared.hosts(parser)
    return parser
