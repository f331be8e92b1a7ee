"""`python make_venv.py FOLDER`: a virtual environment with what requirements.lock names.

Runs on the Python that the machine has, of any version: an old one is refused here, in one line.
"""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
LOCK = os.path.join(HERE, os.pardir, "requirements.lock")


def fail(problem):
    # type: (str) -> None
    sys.exit("connlib: " + problem)


def main(folder):
    # type: (str) -> None
    if sys.version_info < (3, 10):
        fail(
            "this is Python %d.%d; connlib needs 3.10 or newer: make PYTHON=python3.13 ..."
            % sys.version_info[:2]
        )
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(os.path.join(folder, "bin", "pip")):
        try:
            import ensurepip  # noqa: F401
            import venv
        except ImportError:
            fail("this Python cannot make virtual environments; on Debian: apt-get install python3-venv")
        venv.create(folder, with_pip=True, clear=True)
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--requirement",
        LOCK,
    ]
    if subprocess.call(command) != 0:
        fail("pip could not install requirements.lock")


if __name__ == "__main__":
    main(sys.argv[1])
