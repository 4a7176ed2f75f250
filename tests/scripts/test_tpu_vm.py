"""scripts/tpu_vm.sh against a cloud that is a folder; see conftest.py."""

import itertools
import json
import shlex
import time

import pytest

TRAIN = ("run", "--config", "configs/demo.py", "--workdir", "runs/a")
# How a run begins where there is no VM: nothing found, requested, ready, one host; then no
# training found, copied and installed, started.
PREPARE = [
    "tpu-vm list",
    "queued-resources list",
    "queued-resources create",
    "tpu-vm list",
    "tpu-vm describe",
    "tpu-vm ssh",
    "tpu-vm scp",
    "tpu-vm ssh",
    "tpu-vm ssh",
]
AWKWARD = (
    '--config=configs/folder.py:root=my photos,encoder=it\'s "mine"',
    "--workdir=runs/$HOME `id` \\ * ~ é",
    "--config.data.categories=",
    "a\nb",
    "",
)


def printed(output):
    """The commands of a dry run, each as its arguments."""
    return [shlex.split(line) for line in output.splitlines()]


def without_repeats(calls):
    return [call for call, _ in itertools.groupby(calls)]


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    status, output, _ = cloud.run("--dry-run", "all", *TRAIN[1:])
    zone, box = "--zone=zone-a", "box"
    tpu_vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    requests = ["gcloud", "compute", "tpus", "queued-resources"]
    all_hosts = [*tpu_vm, "ssh", box, zone, "--worker=all"]
    host_script = "bash harmoniad/scripts/tpu_host.sh"
    look = "if [ -e harmoniad/scripts ]; then "
    look += f"{host_script} status; else echo training=none; fi"
    find = [*tpu_vm, "list", zone, "--filter=name~/box$", "--format=value(state)"]
    archive = "/tmp/harmoniad.tgz"
    assert status == 0
    commands = printed(output)
    assert commands.pop(6)[:3] == ["tar", "-czhf", archive]
    assert commands == [
        find,
        [*requests, "list", zone, "--filter=name~/box$", "--format=value(state.state)"],
        [*requests, "create", box, zone, "--node-id=box", "--accelerator-type=v5litepod-8"]
        + ["--runtime-version=v2-alpha-tpuv5-lite"],
        find,
        [*tpu_vm, "describe", box, zone, "--format=value(networkEndpoints.len())"],
        [*all_hosts, f"--command={look}"],
        [*tpu_vm, "scp", archive, "box:harmoniad.tgz", zone, "--worker=all"],
        [
            *all_hosts,
            "--command=mkdir -p harmoniad && tar -xzf harmoniad.tgz -C harmoniad "
            f"--recursive-unlink && {host_script} install",
        ],
        [*all_hosts, f"--command={host_script} start {' '.join(TRAIN[1:])}"],
        [*all_hosts, f"--command={look}"],
        ["mkdir", "-p", "runs"],
        [*tpu_vm, "scp", "box:harmoniad/runs/a", "runs", zone, "--worker=0", "--recurse"],
        [*requests, "delete", box, zone, "--force", "--quiet"],
    ]
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("tpu", "runtime"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v4-16", "tpu-ubuntu2204-base"),
    ],
)
def test_a_dry_run_for_several_spot_hosts(cloud, tpu, runtime):
    status, output, _ = cloud.run(
        "--dry-run",
        "run",
        "--workdir=/mnt/shared/runs/a",
        TPU_TYPE=tpu,
        SPOT="1",
        HOSTS="4",
        NFS="10.0.0.2:/share",
        UPLOAD="my photos",
    )
    assert status == 0
    commands = printed(output)
    create = commands[2]
    assert create[5:] == [
        "box",
        "--zone=zone-a",
        "--node-id=box",
        f"--accelerator-type={tpu}",
        f"--runtime-version={runtime}",
        "--spot",
    ]
    assert commands[6][-1] == "my photos"
    assert commands[8][-1].endswith("tpu_host.sh install 10.0.0.2:/share /mnt/shared")
    hosts = [part for part in commands[5:] for part in part if part.startswith("--worker")]
    assert hosts == ["--worker=all"] * 5


def test_train_arguments_arrive_as_they_are(cloud):
    cloud.plan(0)
    status, _, errors = cloud.run("run", *AWKWARD)
    assert (status, cloud.trained()) == (0, [["-m", "harmoniad_jax.train", *AWKWARD]]), (
        errors
    )


def test_the_printed_commands_do_what_the_script_does(cloud):
    cloud.plan(0)
    _, output, _ = cloud.run("--dry-run", "run", *AWKWARD)
    cloud.shell(f"set -e\n{output.replace('/tmp/', f'{cloud.folder}/')}")
    cloud.wait_for_training()
    assert cloud.trained() == [["-m", "harmoniad_jax.train", *AWKWARD]]
    assert cloud.calls() == [*PREPARE, "tpu-vm ssh"]


def test_a_run_trains_to_the_end(cloud):
    cloud.plan(0)
    status, _, errors = cloud.run(*TRAIN)
    assert status == 0, errors
    assert without_repeats(cloud.calls()) == without_repeats(PREPARE)
    installed = cloud.folder / "host0/harmoniad"
    assert (installed / "harmoniad_jax/train.py").exists()
    assert (installed / "configs/demo.py").exists()
    assert "the outcome is 0" in (installed / "train.log").read_text()


def test_a_preempted_vm_is_made_again_and_training_continued(cloud):
    cloud.plan("preempt", "preempt", 0)
    status, _, errors = cloud.run(*TRAIN)
    assert status == 0, errors
    assert cloud.trained() == [["-m", "harmoniad_jax.train", *TRAIN[1:]]] * 3
    assert errors.count("box is PREEMPTED: creating it again") == 2
    requests = [call for call in cloud.calls() if call.startswith("queued-resources")]
    again = ["queued-resources delete", "queued-resources create"]
    assert requests == ["queued-resources list", "queued-resources create", *again, *again]
    assert cloud.calls().count("tpu-vm scp") == 3, "each VM gets the project"


def test_a_vm_preempted_while_it_is_installed_is_made_again(cloud):
    cloud.set("lose", True)
    cloud.plan(0)
    status, _, errors = cloud.run(*TRAIN)
    assert (status, len(cloud.trained())) == (0, 1), errors
    assert cloud.calls().count("queued-resources create") == 2


def test_a_vm_that_is_gone_is_made_again(cloud):
    cloud.set("states", ["SUSPENDED"])
    cloud.set(
        "new", ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "CREATING", "READY"]
    )
    cloud.plan(0)
    status, _, errors = cloud.run(*TRAIN)
    assert status == 0, errors
    assert "box is SUSPENDED: creating it again" in errors
    assert errors.count("box is WAITING_FOR_RESOURCES: waiting") == 2
    assert errors.count("box is CREATING: waiting") == 1
    assert len(cloud.trained()) == 1


def test_training_that_saved_and_stopped_goes_on_on_the_same_vm(cloud):
    cloud.plan(75, 0)
    status, _, errors = cloud.run(*TRAIN)
    assert status == 0, errors
    assert len(cloud.trained()) == 2
    assert cloud.calls().count("queued-resources create") == 1
    assert cloud.calls().count("tpu-vm scp") == 1


def test_training_is_not_continued_for_ever(cloud):
    cloud.plan(75)
    status, _, errors = cloud.run(*TRAIN, MAX_RESTARTS="2")
    assert (status, len(cloud.trained())) == (75, 3), errors
    assert "interrupted 3 times; the same command continues it" in errors


@pytest.mark.parametrize("outcome", [1, 2, 134])
def test_an_error_of_training_ends_the_run_and_shows_its_log(cloud, outcome):
    cloud.plan(outcome, 0)
    status, _, errors = cloud.run(*TRAIN)
    assert (status, len(cloud.trained())) == (outcome, 1)
    assert f"training ended with status {outcome}" in errors
    assert f"the outcome is {outcome}" in errors
    assert "queued-resources delete" not in cloud.calls(), "the VM is left for a look"


def test_an_error_on_any_host_ends_the_run(cloud):
    cloud.set("hosts", 3)
    for host, outcome in enumerate((0, 2, 75)):
        cloud.plan(outcome, host=host)
    status, _, errors = cloud.run(
        "run",
        f"--workdir={cloud.shared}/a",
        NFS="10.0.0.2:/share",
        SHARED=str(cloud.shared),
    )
    assert status == 2, errors
    assert [len(cloud.trained(host)) for host in range(3)] == [1, 1, 1]
    mounts = (cloud.folder / "sudo").read_text()
    assert mounts.count(f"mount -t nfs 10.0.0.2:/share {cloud.shared} ") == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "has 2 hosts, which need a file system that all of them see: set NFS="),
        ({"NFS": "10.0.0.2:/share"}, "--workdir must be a folder below /mnt/shared"),
    ],
)
def test_several_hosts_must_share_the_run(cloud, settings, message):
    cloud.set("hosts", 2)
    status, _, errors = cloud.run(*TRAIN, **settings)
    assert (status, cloud.trained()) == (2, [])
    assert message in errors
    dry, _, errors = cloud.run("--dry-run", *TRAIN, HOSTS="2", **settings)
    assert dry == 2 and message in errors


def test_a_request_that_failed_ends_the_run(cloud):
    cloud.set("new", ["FAILED"])
    status, _, errors = cloud.run(*TRAIN)
    assert (status, cloud.trained()) == (1, [])
    assert "error: box is FAILED" in errors
    assert cloud.calls().count("queued-resources create") == 1


def test_a_stopped_vm_is_not_deleted(cloud):
    cloud.set("states", ["STOPPED"])
    status, _, errors = cloud.run(*TRAIN)
    assert status == 1 and "error: box is STOPPED" in errors
    assert "queued-resources delete" not in cloud.calls()


def test_a_run_takes_up_the_watching_of_training_that_goes_on(cloud):
    cloud.plan("hang")
    lost = cloud.start(*TRAIN)
    cloud.wait_for_training()
    lost.kill()
    lost.communicate()
    assert cloud.run("status")[1] == "box: READY, training: running\n"
    status, _, errors = cloud.run("install")
    assert status == 1 and "error: training is running" in errors

    again = cloud.start(*TRAIN)
    assert "watching training" in again.stderr.readline()
    (cloud.folder / "release").touch()
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert len(cloud.trained()) == 1


def test_a_connection_lost_while_watching_disturbs_nothing(cloud):
    cloud.plan("hang")
    watching = cloud.start(*TRAIN)
    cloud.wait_for_training()
    cloud.set("offline", 5)
    deadline = time.monotonic() + 30
    while json.loads((cloud.folder / "offline").read_text() or "1"):
        assert time.monotonic() < deadline, "nothing more was asked"
        time.sleep(0.02)
    (cloud.folder / "release").touch()
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0, errors
    assert len(cloud.trained()) == 1
    assert cloud.calls().count("queued-resources create") == 1


def test_stop_lets_training_save(cloud):
    cloud.plan("hang", 0)
    watching = cloud.start(*TRAIN)
    cloud.wait_for_training()
    watching.kill()
    watching.communicate()
    assert cloud.run("stop")[0] == 0
    for _ in range(100):
        output = cloud.run("status")[1]
        if "running" not in output:
            break
    assert output == "box: READY, training: 75\n"
    assert cloud.run(*TRAIN)[0] == 0
    assert len(cloud.trained()) == 2


def test_fetch_copies_a_run_folder(cloud):
    cloud.run("create")
    run = cloud.folder / "host0/harmoniad/runs/a"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    status, _, errors = cloud.run("fetch", "runs/a", str(cloud.folder / "fetched"))
    assert status == 0, errors
    assert (cloud.folder / "fetched/a/results.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["run"], {}, "'run' takes the arguments of harmoniad_jax.train, with --workdir"),
        (["create", "now"], {}, "'create' takes no arguments, got: now"),
        (["fetch"], {}, "fetch takes a run folder, such as runs/photos"),
        (["resume"], {}, "unknown command 'resume'; see bash scripts/tpu_vm.sh --help"),
        (["status"], {"TPU_ZONE": ""}, "set the zone of the TPU"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(cloud, arguments, settings, message):
    status, _, errors = cloud.run(*arguments, **settings)
    assert status == 2
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert cloud.calls() == []


def test_help_needs_no_settings(cloud):
    status, output, _ = cloud.run("--help", TPU_ZONE="")
    assert status == 0
    assert output.startswith("usage:") and "MAX_RESTARTS" in output
    assert cloud.run(TPU_ZONE="")[:2] == (status, output), "the same without any argument"
