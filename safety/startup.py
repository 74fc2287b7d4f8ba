"""Runs before any third-party import: checks the Python version and silences TensorFlow's start-up messages."""

from __future__ import annotations

import os
import sys
import warnings

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    print(
        f"error: Python 3.9, 3.10 or 3.11 is needed (for TensorFlow Addons), got {sys.version.split()[0]}",
        file=sys.stderr,
    )
    sys.exit(2)

# TensorFlow reads this level at import. Level 2 still reports three missing CUDA plug-ins on machines without a GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow Addons warns of its end of life at every import; requirements.txt pins versions that work with it.
warnings.filterwarnings("ignore", message=r"\s*TensorFlow Addons")
