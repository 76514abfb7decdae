"""Jobs, one per file or folder."""

import os

# XLA reports slow compilation as an error, on a busy machine for programs of any size. Real errors are exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
