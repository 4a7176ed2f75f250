#!/usr/bin/env bash
# What tpu_vm.sh has each host of a TPU VM do, in the copy of the project there:
#
#   install [HOST:/SHARE FOLDER]   mounts the share at the folder, installs the project
#   start ARGUMENTS                trains with these arguments, detached from the connection
#   status                         prints training=running, =none or =EXIT_STATUS
#   stop                           lets training save and end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mount_share() { # HOST:/SHARE FOLDER
    if ! mountpoint -q "$2"; then
        # A machine that has just started may be installing updates: wait for their lock.
        sudo apt-get -o DPkg::Lock::Timeout=600 install -qq -y nfs-common
        sudo mkdir -p "$2"
        sudo mount -t nfs "$1" "$2"
    fi
    # A new share belongs to root.
    if ! [ -w "$2" ]; then sudo chmod a+rwx "$2"; fi
}

install() {
    if [ $# -gt 0 ]; then mount_share "$@"; fi
    # The images bring Python 3.10, which is too old; uv fetches a newer one.
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv
    ~/.local/bin/uv pip install --quiet --python .venv --editable '.[tpu]'
}

# Training inherits the open lock from here, without a gap, and nothing outlives it with
# the lock: while it is held, training runs.
start() {
    exec 9> lock
    if ! flock -w 5 9; then # as when gcloud tries again after a lost connection
        echo "training is running already"
        return
    fi
    rm -f status
    nohup setsid bash scripts/tpu_host.sh train "$@" >> train.log 2>&1 < /dev/null &
}

train() {
    local status=0
    # User ids may differ from host to host: each may write what another one made.
    umask 0
    .venv/bin/python -m harmoniad_jax.train "$@" &
    echo $! > pid
    wait $! || status=$?
    echo "$status" > status
}

status() {
    if [ -e lock ] && ! flock -n lock true; then
        echo training=running
    elif [ -e status ]; then
        echo "training=$(cat status)"
    else # not started, or cut off with its host
        echo training=none
    fi
}

stop() {
    if [ "$(status)" = training=running ]; then kill -TERM "$(cat pid)"; fi
}

"$@"
