"""Stands in for gcloud: `conftest.Cloud` tells what the files in $CLOUD mean."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
OF_THE_REQUEST = ("WAITING_FOR_RESOURCES", "FAILED", "SUSPENDED")  # there is no VM


def read(name):
    return json.loads((CLOUD / name).read_text())


def write(name, value):
    (CLOUD / name).write_text(json.dumps(value))


def folders():
    return sorted(CLOUD.glob("host[0-9]"))


def create():
    if read("states"):
        sys.exit("ALREADY_EXISTS")
    write("states", read("new"))
    for number in range(read("hosts")):
        (CLOUD / f"host{number}").mkdir()


def delete():
    write("states", [])
    for folder in folders():
        shutil.rmtree(folder)


def look(group):
    states = read("states")
    if states and (group == "tpu-vm") != (states[0] in OF_THE_REQUEST):
        print(states[0])
        write("states", states[1:] or states)


def copy(source, target, worker):
    chosen = folders() if worker == "all" else [folders()[int(worker)]]
    if target.startswith("box:"):
        for folder in chosen:
            shutil.copy(source, folder / target.removeprefix("box:"))
    else:
        path = chosen[0] / source.removeprefix("box:")
        shutil.copytree(path, Path(target) / path.name)


def ssh(worker, command):
    """Status of the first host that fails, as with gcloud."""
    chosen = folders() if worker == "all" else [folders()[int(worker)]]
    status = 0
    for folder in chosen:
        environment = {**os.environ, "HOME": str(folder)}
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment)
        status = status or done.returncode
    sys.exit(status)


def main():
    assert sys.argv[1:3] == ["compute", "tpus"]
    group, verb, *rest = sys.argv[3:]
    flags = dict(item[2:].partition("=")[::2] for item in rest if item.startswith("--"))
    names = [item for item in rest if not item.startswith("--")]
    with open(CLOUD / "calls", "a") as file:
        file.write(f"{group} {verb}\n")
    assert flags["zone"] == "zone-a"
    if read("offline"):
        write("offline", read("offline") - 1)
        sys.exit("no answer")
    if verb == "list":
        look(group)
    elif verb == "create":
        create()
    elif verb == "delete":
        delete()
    elif read("states") != ["READY"]:
        sys.exit("the TPU VM is not READY")
    elif verb == "describe":
        print(len(folders()))
    elif verb == "scp":
        copy(*names, flags["worker"])
    elif verb == "ssh":
        ssh(flags["worker"], flags["command"])
    else:
        sys.exit(f"no such command: {verb}")


if __name__ == "__main__":
    main()
