"""Prints the median-frequency class weights of a data set, as a table and as a command-line option.

    python -m segjax.data.class_weights --name=camvid --dir=FOLDER

The weights are counted while the data set is prepared and kept beside its records.
"""

import argparse
import dataclasses

from rich.console import Console

from segjax import config
from segjax.data import datasets


def main(arguments: list[str] | None = None) -> None:
    """Runs the command on the arguments, those of the process unless given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(config.Data):
        if field.name in ("name", "dir", "cache", "train_split", "label_map", "options"):
            parser.add_argument(
                f"--{field.name}", default=field.default, help=f"default: {field.default!r}"
            )
    data = config.Data(**vars(parser.parse_args(arguments)))
    try:
        prepared = datasets.prepare(data, [data.train_split], show=False)
    except ValueError as error:
        parser.error(str(error))
    Console().print(prepared.table())
    for name, weights in (
        ("median_frequency", prepared.class_weights),
        ("published", prepared.dataset.class_weights),
    ):
        if len(weights):
            listed = ",".join(f"{weight:.4f}" for weight in weights)
            print(f'{name}: --config.loss.class_weights="{listed}"')


if __name__ == "__main__":
    main()
