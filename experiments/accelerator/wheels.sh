#!/usr/bin/env bash
# The packages that a bare Python 3.12 with JAX and PyTorch lacks, as a folder of wheels for a machine without network:
#     experiments/accelerator/wheels.sh wheels
# There: python3 -m pip install --no-index --no-deps wheels/*.whl
set -euo pipefail
packages=(
    tyro docstring-parser typeguard                                # options of the command
    jaxtyping wadler-lindig                                        # the library's annotations
    diffrax equinox lineax optimistix                              # the likelihood
    grain array-record portpicker absl-py cloudpickle tensorboardX  # training
    diffusers importlib-metadata lazy-importer requests charset-normalizer idna urllib3 certifi # the pipeline in PyTorch
)
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi none \
    --dest "${1:-wheels}" "${packages[@]}"
du -sh "${1:-wheels}"
