"""What tests of preparing share: the command, started and ended, and folders compared."""

import subprocess
import sys
from pathlib import Path

from miniatures import draw_image, mvtec, write_tar

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "tfds_builders.prepare")
STARTED = []


def start(*arguments):
    command = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(command)
    return command


def finish(command):
    """Status, and lines of standard output and standard error."""
    output, errors = command.communicate(timeout=120)
    return command.returncode, output.splitlines(), errors.splitlines()


def state(folder):
    """Everything about every file below a folder, but for when it was read."""
    return {
        path: (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.is_file() and path.read_bytes(),
        )
        for path in Path(folder).rglob("*")
    }


def changed(manual):
    """Replaces the archive by one with another image; gives what is expected of it."""
    name = "bottle/train/good/000.png"
    image = draw_image("another.png", (20, 16))
    write_tar({**mvtec().files, name: image}, manual / "mvtec_anomaly_detection.tar.gz")
    return mvtec()._replace(
        expected=[
            drawn._replace(image=image) if drawn.path == name else drawn
            for drawn in mvtec().expected
        ]
    )


def spoil(manual):
    for path in manual.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
