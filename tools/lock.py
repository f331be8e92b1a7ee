"""`make lock`: requirements.lock, for every supported Python at once, from what pyproject.toml names."""

from __future__ import annotations

import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The versions that the checks run with, for every CPython >= 3.10: `pip install -r requirements.lock`.
# The direct ones are named in pyproject.toml; after a change there, `make lock` writes this file anew.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        command = [python, "-m", "uv", "pip", "compile", "--quiet", "--no-python-downloads", "--universal"]
        command += ["--python-version", "3.10", "--extra", "dev", "--no-header", "--no-annotate"]
        command += ["--no-emit-index-url", "pyproject.toml"]
        lines = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
    (ROOT / "requirements.lock").write_text(HEADER + lines)


if __name__ == "__main__":
    main()
