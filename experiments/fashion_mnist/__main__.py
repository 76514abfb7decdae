"""The command `python -m experiments.fashion_mnist`: the name of a preset ("default" if omitted), then options."""

import sys

import tyro

from experiments.fashion_mnist import study

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in {*study.PRESETS, "-h", "--help"}:
        arguments = ["default", *arguments]
    configs = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in study.PRESETS.items()}, {name: text for name, (text, _) in study.PRESETS.items()}
    )
    study.main(tyro.cli(configs, prog="python -m experiments.fashion_mnist", args=arguments, description=study.__doc__))
