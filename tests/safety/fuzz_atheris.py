"""Coverage-guided fuzzing, if atheris is installed: python tests/safety/fuzz_atheris.py Folds.csv|config.yaml|PNG RUNS FOLDER

Each input must end within ten seconds, in success or in an InputError of printable lines; anything else ends the process
with a traceback. Prints the number of each outcome. FOLDER must be empty; it receives the inputs that reached new code.
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
    from safety.errors import InputError
    from safety.limits import printable


def seed(name: str) -> bytes:
    """A valid input, from which atheris starts."""
    if name == "config.yaml":
        return config.DEFAULTS.with_name("sample.yaml").read_bytes()
    if name == "Folds.csv":
        return fold_rows(images=1).iloc[::60].to_csv(index=False).encode()
    content = io.BytesIO()
    Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)).save(content, "PNG")
    return content.getvalue()


def outcome(read, path: Path) -> str:
    """The outcome of reading for the user; raises any exception that is not an InputError."""
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
