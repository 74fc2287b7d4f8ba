"""Fuzzing led by coverage, where atheris is installed: python tests/fuzz_atheris.py Folds.csv|config.yaml|PNG RUNS FOLDER

Each input must end in success or in an InputError of one printable line or more, within ten seconds; anything else ends
the process with a traceback. Prints how many ended how; FOLDER, an empty one, keeps the inputs that led further.
"""

import io
import sys
from collections import Counter
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
with atheris.instrument_imports(include=["config", "data", "images", "safety", "ruamel"]):
    import numpy as np
    from PIL import Image
    from test_hostile import TARGETS
    from tiny_tree import fold_rows

    import config
    from config import InputError
    from safety.limits import printable


def seed(name: str) -> bytes:
    """A valid input, for atheris to begin with."""
    if name == "config.yaml":
        return config.DEFAULTS.with_name("sample.yaml").read_bytes()
    if name == "Folds.csv":
        return fold_rows(images=1).iloc[::60].to_csv(index=False).encode()
    content = io.BytesIO()
    Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)).save(content, "PNG")
    return content.getvalue()


def outcome(read, path: Path) -> str:
    """How reading ends, for the user; what is no ending of ours is passed on."""
    try:
        read(path)
    except InputError as error:
        assert error.lines and all(printable(line).isprintable() for line in error.lines)
        return f"exit {error.status}"
    return "success"


def fuzz(name: str, runs: int, folder: Path) -> None:
    """Reads `runs` inputs; ends the process."""
    _, read, _ = TARGETS[name]
    path, corpus, outcomes = folder / "input", folder / "corpus", Counter()
    corpus.mkdir()
    (corpus / "seed").write_bytes(seed(name))

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        outcomes[outcome(read, path)] += 1
        if outcomes.total() == runs:
            print(f"{name}, atheris: {runs} inputs, {dict(outcomes)}", flush=True)

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-runs={runs}", "-timeout=10", "-max_len=4096", f"-artifact_prefix={folder}/"],
        attempt,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
