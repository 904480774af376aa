"""cluster/slurm.sh run by bash, with stand-ins for SLURM, Ray and Python that write down how they were called."""

import contextlib
import os
import signal
import stat
import subprocess
import time

import pytest

STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" != show ] || printf "n1\\nn2\\n"',
    # Runs the step here, as if it were that node.
    "srun": 'echo "srun $*" >> "$CALLS"; while [[ $1 == --* && $1 != --all-ip-addresses ]]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1 fd00::1",
    # `status` answers once the head has been started.
    "ray": """echo "ray $*" >> "$CALLS"
[[ $1 != status ]] || until grep -q "^ray start --head" "$CALLS"; do sleep 0.05; done
[[ $1 != start ]] || exec sleep 300""",
    # The driver: ends with 1 when it is told to, as a study that was stopped does.
    "python": """echo "python $*" >> "$CALLS"
[[ $2 == cluster.node_check ]] && exit "${NODE_CHECK:-0}"
trap 'echo "driver told, notice: $(ls "$UPS_PREEMPTION_FILE" 2>/dev/null)" >> "$CALLS"; exit 1' TERM
echo driving >> "$CALLS"; [[ -z ${LONG:-} ]] || for _ in $(seq 300); do sleep 0.1; done; exit "${STATUS:-0}" """,
}


class Job:
    """The script as SLURM would start it."""

    def __init__(self, repo_root, folder, **environment):
        (folder / "bin").mkdir()
        (folder / "home" / ".venv" / "bin").mkdir(parents=True)
        (folder / "home" / ".venv" / "bin" / "activate").write_text("")
        for name, text in STUBS.items():
            file = folder / "bin" / name
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        self.folder, self.calls = folder, folder / "calls"
        self.calls.write_text("")
        job = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "CALLS": str(self.calls),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_SUBMIT_DIR": str(folder),
        }
        self.process = subprocess.Popen(
            ["bash", str(repo_root / "cluster" / "slurm.sh"), "tables_7_9", "--storage", "/shared/a b"],
            env={**job, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, words):
        for _ in range(200):
            if words in self.calls.read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"no {words!r} in {self.calls.read_text()}")

    def end(self):
        status = self.process.wait(timeout=30)
        return status, self.calls.read_text().splitlines()


@pytest.fixture
def start(repo_root, tmp_path):
    jobs = []

    def begin(**environment):
        jobs.append(Job(repo_root, tmp_path, **environment))
        return jobs[-1]

    yield begin
    for job in jobs:  # SLURM ends the steps of a job; here it is the session that the script began.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)


def test_a_study_runs_on_a_head_and_the_other_nodes_and_its_status_is_the_jobs(start):
    job = start(STATUS="1")
    job.until("--exclude=n1")  # A step in the background: it may be written down after the driver has ended.
    status, calls = job.end()
    assert status == 1
    port = 20000 + 4711
    heads = [call for call in calls if call.startswith("srun") and "ray start --head" in call]
    others = [call for call in calls if call.startswith("srun") and f"--address=10.0.0.1:{port}" in call]
    assert len(heads) == len(others) == 1
    assert "--nodelist=n1" in heads[0] and "--dashboard-host=127.0.0.1" in heads[0] and f"--port={port}" in heads[0]
    assert "--exclude=n1" in others[0] and "--ntasks=1" in others[0]
    assert f"python -m orchestrator.ablate tables_7_9 --storage /shared/a b --address 10.0.0.1:{port}" in calls
    order = [next(i for i, call in enumerate(calls) if what in call) for what in ("node_check", "--head", "ablate")]
    assert order == sorted(order)


def test_the_signal_before_the_end_leaves_a_notice_stops_the_driver_and_requeues(start):
    job = start(LONG="1")
    job.until("driving")
    job.process.send_signal(signal.SIGUSR1)
    status, calls = job.end()
    assert status == 0
    told = next(call for call in calls if call.startswith("driver told"))
    assert told == f"driver told, notice: {job.folder}/.preempted-4711-0"
    assert calls[-1] == "scontrol requeue 4711"
    # The requeued job has the same number: it must not find the notice of the one before.
    assert not list(job.folder.glob(".preempted-*"))


def test_a_requeued_job_has_a_notice_of_its_own(start):
    job = start(LONG="1", SLURM_RESTART_COUNT="2")
    job.until("driving")
    job.process.send_signal(signal.SIGUSR1)
    _, calls = job.end()
    assert any(call.endswith("/.preempted-4711-2") for call in calls)


def test_a_node_that_cannot_compute_ends_the_job_before_ray_starts(start):
    status, calls = start(NODE_CHECK="1").end()
    assert status == 1
    assert not [call for call in calls if "ray start" in call]


def test_one_node_needs_no_other(start):
    status, calls = start(SLURM_NNODES="1").end()
    assert status == 0
    assert not [call for call in calls if "--exclude" in call]
