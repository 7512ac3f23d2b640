"""TPU slices on GKE: what xpk.sh asks of xpk, the JobSet and the run that it starts, and the image of both."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
import yaml
from launched import LAUNCH, REPOSITORY, Programs, check_devices, load, one_line, run_of

from segearth_r2_jax.errors import PREEMPTED

WORKLOAD = {"CLUSTER": "c", "WORKLOAD": "segearth", "TPU_TYPE": "v5litepod-16", "IMAGE": "host/segearth-r2"}
MESH = ["--config.data.batch_size=16", "--config.mesh.data=1", "--config.mesh.fsdp=16"]
TRAIN = ["train", "--config", "configs/segearth_r2_lasers.py", "--workdir", "gs://b/my run", *MESH]


def option(arguments: list[str], name: str) -> list[str]:
    return [value for key, value in itertools.pairwise(arguments) if key == name]


@pytest.fixture
def programs(tmp_path) -> Programs:
    programs = Programs(tmp_path / "bin")
    programs.add("xpk")
    return programs


def xpk(programs: Programs, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return programs.run(["bash", str(LAUNCH / "xpk.sh"), *arguments], **environment)


def test_xpk_is_asked_for_a_workload_that_restarts_after_preemptions_and_crashes(programs):
    result = xpk(programs, *TRAIN, **WORKLOAD)
    assert result.returncode == 0, result.stderr
    (call,) = programs.calls("xpk")
    command = call.arguments.pop()
    assert call.arguments == [
        *("workload", "create", "--cluster", "c", "--workload", "segearth", "--tpu-type", "v5litepod-16", "--num-slices", "1"),
        *("--docker-image", "host/segearth-r2", "--max-restarts", "100", "--restart-on-exit-codes", f"1,{PREEMPTED}"),
        *("--termination-grace-period-seconds", "300", "--env", "JAX_PLATFORMS=tpu,cpu", "--env", "SEGEARTH_R2_RUNTIME=tpu", "--command"),
    ]
    words = shlex.split(command)
    assert words == ["exec", "python", "launch/runtime.py", *TRAIN]
    check_devices(run_of(words[3:]), 16)


def test_xpk_takes_project_zone_slices_and_dry_run(programs):
    xpk(programs, *TRAIN, **WORKLOAD, PROJECT="p", ZONE="us-west4-a", SLICES="2", DRY_RUN="1")
    (call,) = programs.calls("xpk")
    assert [option(call.arguments, name) for name in ("--project", "--zone", "--num-slices")] == [["p"], ["us-west4-a"], ["2"]]
    assert "--dry-run" in call.arguments


def test_what_xpk_lacks_is_one_line(programs):
    assert "set CLUSTER TPU_TYPE in the environment" in one_line(xpk(programs, *TRAIN, WORKLOAD="w", IMAGE="i"))
    assert "expected what segearth-r2 is to do" in one_line(xpk(programs, **WORKLOAD))
    assert programs.calls() == []


@pytest.mark.skipif(shutil.which("xpk") is None, reason="xpk is not installed")
def test_xpk_itself_makes_a_jobset_of_it(tmp_path):
    settings = WORKLOAD | {"PROJECT": "p", "ZONE": "us-west4-a", "DRY_RUN": "1"}
    result = Programs(tmp_path / "none").run(["bash", str(LAUNCH / "xpk.sh"), *TRAIN], **settings)
    assert result.returncode == 0, result.stdout + result.stderr
    text = re.search(r"content: *\n(apiVersion.*?)\n\[XPK\]", result.stdout, re.DOTALL).group(1)
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert job["template"]["spec"]["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == 16
    assert f"(exec python launch/runtime.py {shlex.join(TRAIN)[:20]}" in container["command"][-1]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert {1, PREEMPTED, 137, 143} <= set(rule["onExitCodes"]["values"])
    assert not {0, 2} & set(rule["onExitCodes"]["values"])


@pytest.fixture(scope="module")
def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "jobset_tpu.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def container(job) -> dict:
    (container,) = job["template"]["spec"]["containers"]
    return container


def test_the_jobset_starts_one_pod_per_host_with_its_chips(jobset, job, container):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    hosts, chips = job["parallelism"], container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == hosts
    assert job["completionMode"] == "Indexed"
    selector = job["template"]["spec"]["nodeSelector"]
    topology = [int(side) for side in selector["cloud.google.com/gke-tpu-topology"].split("x")]
    assert math.prod(topology) == hosts * chips
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert chips == 4  # The machine of a v5e slice of several hosts has four.
    check_devices(run_of(container["args"]), hosts * chips)


def test_the_hosts_of_the_jobset_find_each_other(jobset, container):
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert load("runtime").detect(environment, has_tpu=False) == "tpu"


def test_a_preemption_of_the_jobset_is_not_a_crash_and_wrong_input_is_the_end(jobset, job, container):
    """Kubernetes says of a failed job why it failed: PodFailurePolicy where a rule of the pods matched, with the exit status."""
    assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")
    exit_codes, conditions = job["podFailurePolicy"]["rules"]
    assert exit_codes["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, PREEMPTED]}
    assert conditions["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]

    def action(reason: str, message: str) -> str:
        for rule in jobset["spec"]["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        return "RestartJobSet"

    said = "Container train for pod default/segearth-r2-slice-0-1-x7k2p failed with exit code {} matching FailJob rule at index 0"
    assert action("PodFailurePolicy", said.format(2)) == "FailJobSet"
    assert action("PodFailurePolicy", said.format(PREEMPTED)) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("PodFailurePolicy", "Pod default/x has condition DisruptionTarget matching") == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_sigterm_reaches_python_with_time_for_a_save(job, container):
    assert container["command"] == ["python", "launch/runtime.py"]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_the_loader_has_shared_memory(job, container):
    (volume,) = job["template"]["spec"]["volumes"]
    assert volume["emptyDir"] == {"medium": "Memory"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]


def test_the_image_holds_what_is_installed_and_started():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert all((REPOSITORY / name).exists() for name in copied)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "launch", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed |= set(project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"])
    assert needed <= set(copied)
    extras = re.search(r"\.\[([a-z,]+)\]", lines[-1]).group(1).split(",")
    assert set(extras) <= project["project"]["optional-dependencies"].keys()
