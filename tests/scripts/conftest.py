"""A Google Cloud of one folder: its gcloud runs what the hosts of a TPU VM would run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE_GCLOUD = Path(__file__).with_name("fake_gcloud.py")

# What the hosts have. Training records its arguments, then does what the first line of its
# host's plan says, which the next training no longer finds, unless it is the last one: exit
# with a status, be preempted with the whole VM, or hang until released or told to save.
PROGRAMS = {
    "python3": r"""
        mkdir -p ~/.local/bin && ln -sf "$CLOUD/bin/uv" ~/.local/bin/uv
        """,
    "uv": r"""
        if rm "$CLOUD/lose" 2> /dev/null; then
            echo '["PREEMPTED"]' > "$CLOUD/states"
            exit 255
        fi
        mkdir -p .venv/bin && ln -sf "$CLOUD/bin/training" .venv/bin/python
        """,
    "training": r"""
        host=$(basename "$HOME")
        printf '%s\0' "$@" > "$CLOUD/unfinished-$host"
        mv "$CLOUD/unfinished-$host" "$CLOUD/trained-$host-$(date +%s%N)"
        outcome=$(head -n 1 "$CLOUD/plan-$host")
        sed -i '1{$!d}' "$CLOUD/plan-$host"
        echo "the outcome is $outcome"
        case $outcome in
            preempt | hang)
                # With the VM goes what a look that had begun could report: never a status.
                if [ "$outcome" = preempt ]; then echo '["PREEMPTED"]' > "$CLOUD/states"; fi
                trap 'exit 75' TERM
                while [ ! -e "$CLOUD/release" ]; do sleep 0.05; done ;;
            *) exit "$outcome" ;;
        esac
        """,
    "mountpoint": "exit 1",
    "sudo": r"""
        printf '%s ' "$@" >> "$CLOUD/sudo"
        """,
}


class Cloud:
    """The folder, and the script run in it.

    Files: `states`, of which each look at the VM takes one, the last one staying; `new`,
    the states of a VM that is requested; `hosts`, how many it gets; `plan-hostN`; `calls`,
    one gcloud command a line; `lose`, to be preempted while installing; `offline`, how many
    gcloud commands get no answer.
    """

    def __init__(self, folder):
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir()
        (folder / "bin").mkdir()
        fake = f'exec "{sys.executable}" "{FAKE_GCLOUD}" "$@"'
        for name, text in {**PROGRAMS, "gcloud": fake}.items():
            program = folder / "bin" / name
            program.write_text(f"#!/usr/bin/env bash\n{text}\n")
            program.chmod(0o755)
        self.set("states", [])
        self.set("new", ["READY"])
        self.set("hosts", 1)
        self.set("offline", 0)

    def set(self, name, value):
        (self.folder / name).write_text(json.dumps(value))

    def plan(self, *outcomes, host=0):
        lines = "".join(f"{outcome}\n" for outcome in outcomes)
        (self.folder / f"plan-host{host}").write_text(lines)

    def environment(self, **settings):
        kept = ("HOME", "LANG", "TMPDIR")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CLOUD": str(self.folder),
            "TPU_ZONE": "zone-a",
            "TPU_NAME": "box",
            "POLL_SECONDS": "0.05",
            **settings,
        }

    def start(self, *arguments, **settings):
        """The script, running."""
        return subprocess.Popen(
            ["bash", ROOT / "scripts/tpu_vm.sh", *arguments],
            env=self.environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **settings):
        """The script, ended: its exit status, output and errors."""
        process = self.start(*arguments, **settings)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def shell(self, text):
        """Has a shell of this machine run the text, as a user would paste it."""
        subprocess.run(
            ["bash", "-c", text],
            env=self.environment(),
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def calls(self):
        """The gcloud commands so far, such as "tpu-vm ssh", in order."""
        if not (self.folder / "calls").exists():
            return []
        return (self.folder / "calls").read_text().split("\n")[:-1]

    def trained(self, host=0):
        """The arguments of every training that a host has started, in order."""
        found = sorted(self.folder.glob(f"trained-host{host}-*"))
        return [path.read_text().split("\0")[:-1] for path in found]

    def wait_for_training(self, times=1, host=0):
        deadline = time.monotonic() + 30
        while len(self.trained(host)) < times:
            assert time.monotonic() < deadline, "training has not started"
            time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    (tmp_path / "release").touch()  # whatever still hangs
