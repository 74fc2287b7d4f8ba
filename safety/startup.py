"""What must happen before anything else is imported: the Python version, and what TensorFlow prints."""

from __future__ import annotations

import os
import sys
import warnings

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    print(
        f"error: Python 3.9, 3.10 or 3.11 is needed (TensorFlow Addons ends there), this is {sys.version.split()[0]}",
        file=sys.stderr,
    )
    sys.exit(2)

# TensorFlow reads the level when it is imported. At 2 it still reports three missing CUDA plug-ins on every machine
# without a GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow Addons announces its end of life at every import; requirements.txt already pins for it.
warnings.filterwarnings("ignore", message=r"\s*TensorFlow Addons")
