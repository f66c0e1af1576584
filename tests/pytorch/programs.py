"""The release binaries of this project, run by the scripts beside this file."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "trainer" / "corpus" / "austen.txt"


def command(program: str, *args) -> str:
    """What a program prints; ends this one where it fails."""
    path = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / program
    done = subprocess.run([path, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{program} failed:\n{done.stderr}")
    return done.stdout
