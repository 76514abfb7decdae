"""The command `python -m experiments.text_digits`."""

import tyro

from experiments.text_digits import study

if __name__ == "__main__":
    study.main(tyro.cli(study.Config, prog="python -m experiments.text_digits"))
