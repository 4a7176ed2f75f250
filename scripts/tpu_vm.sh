#!/usr/bin/env bash
# Trains on a Cloud TPU VM: requests it, installs this project on all of its hosts, trains,
# goes on after preemption, fetches the results and deletes it. `--help` says how;
# tpu_host.sh is what the hosts run.
#
# Checked: every command by gcloud 528 itself (`gcloud meta lint-gcloud-commands`), exit
# statuses and formats in its source; waiting, preemption, failures and quoting by the
# tests, whose gcloud runs the hosts' commands. Not checked, for want of a TPU: the service
# itself, the mount, and the installation on Google's images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat << 'END'
usage: [SETTING=VALUE ...] bash scripts/tpu_vm.sh [--dry-run] COMMAND [ARGUMENTS]

  create               request the TPU VM and wait until it is ready
  install              copy this project to every host and install it there
  run ARGUMENTS        train with these arguments of harmoniad_jax.train and watch until the
                       end: creates, installs and continues where needed
  status               state of the VM and of training
  logs                 follow the log of the first host
  stop                 let training save and end (first end `run`, which would continue it)
  fetch RUN [FOLDER]   copy the run folder RUN of the VM into FOLDER (default: runs)
  delete               delete the VM, with its disk
  all ARGUMENTS        run, fetch, delete; a run that fails leaves the VM for a look

Training is detached: Ctrl-C or a lost connection ends only the watching, and the same
command takes it up again. --dry-run prints the commands and runs none.

  TPU_ZONE       zone of the TPU (required); the project is that of `gcloud config`
  TPU_NAME       default: harmoniad
  TPU_TYPE       accelerator type, default: v5litepod-8, which is a single host
  TPU_RUNTIME    software version, default: the one for JAX on that type
  SPOT           1: cheaper, may be preempted; default: 0
  NFS            HOST:/SHARE that all hosts mount, such as a Filestore share in the VM's
                 network: for several hosts, and for what has to outlive the VM
  SHARED         where NFS is mounted, default: /mnt/shared
  UPLOAD         a folder of this project, such as photos, to copy with it
  HOSTS          how many hosts a dry run assumes, default: 1
  POLL_SECONDS   between two looks at the VM, default: 60
  MAX_RESTARTS   how often a run is continued, default: 100

Paths in ARGUMENTS are those of the VM: absolute, or relative to the project's folder.
Several hosts are reached with the key that `ssh-add ~/.ssh/google_compute_engine` adds.
END
}

say() { echo "tpu_vm: $*" >&2; }

fail() { # STATUS MESSAGE
    echo "error: $2" >&2
    exit "$1"
}

# One line that a shell, here or on a host, reads back as the same arguments.
quote() {
    local argument mark="'" escaped="'\\''" line=
    for argument; do
        case $argument in
            '' | *[!A-Za-z0-9_./:=,@%+-]*) argument="'${argument//$mark/$escaped}'" ;;
        esac
        line+="${line:+ }$argument"
    done
    printf '%s\n' "$line"
}

call() { # COMMAND...: runs it; in a dry run prints it
    if [ "$dry_run" = yes ]; then quote "$@"; else "$@"; fi
}

ask() { # ASSUMED COMMAND...: prints the command's answer; in a dry run assumes one
    if [ "$dry_run" = yes ]; then
        quote "${@:2}" >&3
        echo "$1"
    else
        "${@:2}"
    fi
}

on_host() { # HOST TEXT: sets `ssh` to the command by which this host, or all, runs TEXT
    ssh=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker="$1"
        --command="$2")
}

# Sets `state` to that of the VM, else that of its request, else NONE. It lists, since the
# exit status of `list` tells "no answer" from "no such VM"; that of `describe` does not.
find_state() {
    local found query=(--zone="$TPU_ZONE" --filter="name~/$TPU_NAME\$")
    found=$(ask "$assumed_state" gcloud compute tpus tpu-vm list "${query[@]}" \
        --format='value(state)') || return
    if [ -z "$found" ]; then
        found=$(ask '' gcloud compute tpus queued-resources list "${query[@]}" \
            --format='value(state.state)') || return
    fi
    state=${found:-NONE}
}

# A queued request waits for capacity, where `tpu-vm create` would fail.
request() {
    local options=(--zone="$TPU_ZONE" --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE"
        --runtime-version="$TPU_RUNTIME")
    if [ "$SPOT" = 1 ]; then options+=(--spot); fi
    call gcloud compute tpus queued-resources create "$TPU_NAME" "${options[@]}"
    installed=no assumed_state=READY
}

delete() {
    call gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$TPU_ZONE" \
        --force --quiet
}

create() {
    find_state
    while [ "$state" != READY ]; do
        case $state in
            NONE) request ;;
            PREEMPTED | TERMINATED | SUSPENDED)
                say "$TPU_NAME is $state: creating it again"
                delete
                request
                ;;
            FAILED | STOPPED | HIDDEN | UNKNOWN) # a stopped disk may hold a run: keep it
                fail 1 "$TPU_NAME is $state; see gcloud compute tpus queued-resources \
describe $TPU_NAME --zone=$TPU_ZONE, then start it, or: bash scripts/tpu_vm.sh delete" ;;
            *)
                say "$TPU_NAME is $state: waiting"
                sleep "$POLL_SECONDS"
                ;;
        esac
        find_state || say "no answer: trying again"
    done
    count_hosts
}

count_hosts() {
    hosts=$(ask "$HOSTS" gcloud compute tpus tpu-vm describe "$TPU_NAME" \
        --zone="$TPU_ZONE" --format='value(networkEndpoints.len())')
    if [ "$hosts" -gt 1 ] && [ -z "$NFS" ]; then
        fail 2 "$TPU_NAME ($TPU_TYPE) has $hosts hosts, which need a file system that all of \
them see: set NFS=HOST:/SHARE, or choose a type with one host. The VM is up and costs; \
to end it: bash scripts/tpu_vm.sh delete"
    fi
}

install() {
    local share=() parts=(README.md LICENSE setup.py setup.cfg pyproject.toml scripts configs
        harmoniad_jax tfds_builders)
    if [ -n "$UPLOAD" ]; then parts+=("$UPLOAD"); fi
    if [ -n "$NFS" ]; then share=("$NFS" "$SHARED"); fi
    say "installing on $TPU_NAME"
    on_host all "mkdir -p harmoniad && tar -xzf harmoniad.tgz -C harmoniad --recursive-unlink \
&& $(quote bash harmoniad/scripts/tpu_host.sh install ${share[@]+"${share[@]}"})"
    call tar -czhf "$archive" --exclude=__pycache__ "${parts[@]}" &&
        call gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:harmoniad.tgz" \
            --zone="$TPU_ZONE" --worker=all &&
        call "${ssh[@]}" &&
        installed=yes
}

start() { # ARGUMENTS
    on_host all "$(quote bash harmoniad/scripts/tpu_host.sh start "$@")"
    call "${ssh[@]}" && assumed_training=0
}

# Sets `training`: running (on any host), its exit status (the worst of them), or none.
poll() {
    local answers answer
    on_host all "if [ -e harmoniad/scripts ]; then bash harmoniad/scripts/tpu_host.sh status; \
else echo training=none; fi"
    answers=$(ask "training=$assumed_training" "${ssh[@]}") || return
    answers=$(sed -n 's/.*training=//p' <<< "$answers")
    if [ "$dry_run" = no ] && [ "$(wc -w <<< "$answers")" -ne "$hosts" ]; then return 1; fi
    training=0
    for answer in $answers; do
        case $answer in
            running)
                training=running
                return
                ;;
            0) ;;
            75 | none) if [ "$training" = 0 ]; then training=$answer; fi ;;
            *) training=$answer ;;
        esac
    done
}

watch() { # until training has ended or, `training` none, the VM was taken away
    say "watching training; its log: bash scripts/tpu_vm.sh logs"
    while true; do
        if poll; then
            if [ "$training" != running ]; then return; fi
        elif find_state && [ "$state" != READY ]; then
            say "$TPU_NAME is $state"
            training=none
            return
        fi
        sleep "$POLL_SECONDS"
    done
}

run() { # ARGUMENTS
    local restarts=0
    if [ "$SPOT" = 1 ] && [ -z "$NFS" ]; then
        say "warning: without NFS, a run that is preempted starts again from its beginning"
    fi
    while true; do
        create
        if [ "$hosts" -gt 1 ] && [[ $(run_folder "$@") != "$SHARED"/* ]]; then
            fail 2 "$hosts hosts share the run: --workdir must be a folder below $SHARED"
        fi
        if poll && { [ "$training" = running ] ||
            { { [ "$installed" = yes ] || install; } && start "$@"; }; }; then
            watch
        else # the VM may have been taken away just now
            find_state
            if [ "$state" = READY ]; then fail 1 "$TPU_NAME is READY, but this failed"; fi
            training=none
        fi
        case $training in
            0)
                say "training has finished"
                return
                ;;
            75 | none) ;;
            *)
                on_host 0 'tail -n 20 harmoniad/train.log'
                call "${ssh[@]}" >&2 || true
                fail "$training" "training ended with status $training, see above. The VM is \
up and costs; to end it: bash scripts/tpu_vm.sh delete"
                ;;
        esac
        restarts=$((restarts + 1))
        if [ "$restarts" -gt "$MAX_RESTARTS" ]; then
            fail 75 "training was interrupted $restarts times; the same command continues it"
        fi
        say "training was interrupted: continuing it ($restarts)"
    done
}

run_folder() { # ARGUMENTS: prints their --workdir
    while [ $# -gt 0 ]; do
        case $1 in
            --workdir=*) echo "${1#*=}" ;;
            --workdir) echo "${2-}" ;;
        esac
        shift
    done
}

fetch() { # RUN [FOLDER]
    local run=$1 folder=${2:-runs}
    if [[ $run != /* ]]; then run=harmoniad/$run; fi
    call mkdir -p "$folder"
    call gcloud compute tpus tpu-vm scp "$TPU_NAME:$run" "$folder" --zone="$TPU_ZONE" \
        --worker=0 --recurse
}

dry_run=no
if [ "${1:-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
command=${1:---help}
if [ $# -gt 0 ]; then shift; fi

TPU_ZONE=${TPU_ZONE:-} TPU_NAME=${TPU_NAME:-harmoniad} TPU_TYPE=${TPU_TYPE:-v5litepod-8}
case $TPU_TYPE in # https://cloud.google.com/tpu/docs/runtimes
    v5litepod-*) TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5-lite} ;;
    v5p-*) TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5} ;;
    v6e-*) TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv6e} ;;
    *) TPU_RUNTIME=${TPU_RUNTIME:-tpu-ubuntu2204-base} ;;
esac
SPOT=${SPOT:-0} NFS=${NFS:-} SHARED=${SHARED:-/mnt/shared} UPLOAD=${UPLOAD:-}
HOSTS=${HOSTS:-1} POLL_SECONDS=${POLL_SECONDS:-60} MAX_RESTARTS=${MAX_RESTARTS:-100}

case $command in
    -h | --help | help)
        usage
        exit
        ;;
    run | all)
        if [ -z "$(run_folder "$@")" ]; then
            fail 2 "'$command' takes the arguments of harmoniad_jax.train, with --workdir"
        fi
        ;;
    fetch) if [ $# -eq 0 ]; then fail 2 "fetch takes a run folder, such as runs/photos"; fi ;;
    create | install | status | logs | stop | delete)
        if [ $# -gt 0 ]; then fail 2 "'$command' takes no arguments, got: $*"; fi
        ;;
    *) fail 2 "unknown command '$command'; see bash scripts/tpu_vm.sh --help" ;;
esac
if [ -z "$TPU_ZONE" ]; then fail 2 "set the zone of the TPU, such as TPU_ZONE=us-west4-a"; fi

exec 3>&1 # where a dry run prints its commands, also from within $(...)
hosts=$HOSTS installed=no training='' archive=/tmp/harmoniad.tgz
assumed_state=READY assumed_training=none # in a dry run
case $command in create | run | all) assumed_state='' ;; esac
if [ "$dry_run" = no ]; then
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    archive=$temporary/harmoniad.tgz
fi

case $command in
    create | run | fetch | delete) "$command" "$@" ;;
    install)
        count_hosts
        poll
        if [ "$training" = running ]; then fail 1 "training is running; stop it first"; fi
        install
        ;;
    status)
        find_state
        if [ "$state" = READY ]; then
            count_hosts
            poll || training=unknown
        fi
        echo "$TPU_NAME: $state${training:+, training: $training}"
        ;;
    logs)
        on_host 0 'tail -n 50 -F harmoniad/train.log'
        call "${ssh[@]}"
        ;;
    stop)
        on_host all 'bash harmoniad/scripts/tpu_host.sh stop'
        call "${ssh[@]}"
        ;;
    all)
        run "$@"
        fetch "$(run_folder "$@")"
        delete
        ;;
esac
