"""The pages of docs/launch: their commands are accepted, fit the hardware that they name, and do what the page says."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from launched import LAUNCH, REPOSITORY, Programs, check_devices, run_of

PAGES = sorted((REPOSITORY / "docs" / "launch").glob("*.md"))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def lines(page: Path) -> list[list[str]]:
    """The words of every command line of the page."""
    return [shlex.split(line, comments=True) for block in blocks(page) for line in block.splitlines() if line]


def tpu_chips(page: Path) -> int:
    """Chips of the slice that the page's commands ask for."""
    (kind,) = re.findall(r"(?:ACCELERATOR|TPU)_TYPE=(\S+)", "\n".join(blocks(page)))
    return int(re.fullmatch(r"(?:v5litepod|v6e)-(\d+)", kind).group(1))


def test_there_is_a_page_per_target():
    assert [page.stem for page in PAGES] == ["gke", "local", "skypilot", "slurm", "tpu_vm"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_says_what_was_not_run_and_how_a_run_goes_on(page):
    text = page.read_text()
    assert "not run" in text.lower()
    assert "75" in text
    assert "position in the data" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_names_exists(page):
    text = page.read_text()
    for name in re.findall(r"\b(?:launch|configs|docs)/[\w./]+\w", text):
        assert (REPOSITORY / name).exists(), name
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!http)([^)]+)\)", text)):
        target = page.parent / target if target else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_training_command_is_accepted(page):
    for words in lines(page):
        if "train" in words:
            run = run_of(words[words.index("train") :])
            if words[1].endswith(("tpu_vm.sh", "xpk.sh")):
                check_devices(run, tpu_chips(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_compiled_beforehand_fits_the_topology(page):
    for words in lines(page):
        if "compile" in words:
            words = words[words.index("compile") + 1 :]
            at = words.index("--topology")
            topology = words[at + 1].partition(":")[2]
            run = run_of(["train", "--workdir", "w", *words[:at], *words[at + 2 :]])
            check_devices(run, math.prod(int(side) for side in topology.split("x")))


def test_the_commands_of_gke_apply_the_jobset_with_names_filled_in(tmp_path):
    programs = Programs(tmp_path / "bin")
    for name in ("docker", "xpk"):
        programs.add(name)
    applied = tmp_path / "applied.yaml"
    programs.add("kubectl", f"if sys.argv[1:] == ['apply', '-f', '-']: open({str(applied)!r}, 'w').write(sys.stdin.read())")
    commands = "\n".join(blocks(REPOSITORY / "docs" / "launch" / "gke.md")).replace("segearth-r2 compile", "true")
    result = programs.run(["bash", "-ec", commands])
    assert result.returncode == 0, result.stderr
    assert [call.program for call in programs.calls()] == ["docker", "docker", "xpk", "kubectl", "kubectl", "kubectl", "kubectl"]
    text = applied.read_text()
    (container,) = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "us-docker.pkg.dev/my-project/images/segearth-r2"
    assert "--workdir=gs://my-bucket/run" in container["args"]
    assert "BUCKET" not in text.replace("$BUCKET", "")


def test_the_table_of_slices_is_consistent():
    rows = {}
    for line in (REPOSITORY / "docs" / "launch" / "gke.md").read_text().splitlines():
        if line.startswith("|") and line.count("|") == 6:
            name, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
            rows[name.split("`")[0].split(",")[0]] = cells
    # The cells of the first slice are those of the file.
    job = yaml.safe_load((LAUNCH / "jobset_tpu.yaml").read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    selector = job["template"]["spec"]["nodeSelector"]
    assert rows["cloud.google.com/gke-tpu-accelerator"][0] == selector["cloud.google.com/gke-tpu-accelerator"]
    assert rows["cloud.google.com/gke-tpu-topology"][0] == selector["cloud.google.com/gke-tpu-topology"]
    for hosts, topology, chips, mesh in zip(*[rows[key] for key in ("parallelism", *list(rows)[-3:])], strict=True):
        assert int(hosts) * int(chips) == int(mesh) == math.prod(int(side) for side in topology.split("x"))


def test_the_commands_of_the_tpu_page_are_those_of_the_script(tmp_path):
    programs = Programs(tmp_path / "bin")
    programs.add("gcloud")
    first = blocks(REPOSITORY / "docs" / "launch" / "tpu_vm.md")[0]
    result = programs.run(["bash", "-ec", first])
    assert result.returncode == 0, result.stderr
    asked = [call.arguments[3] for call in programs.calls("gcloud")]
    assert asked == ["create", "describe", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]


def test_the_command_of_the_slurm_page_gives_the_file_what_it_asks_for(tmp_path):
    programs = Programs(tmp_path / "bin")
    programs.add("sbatch")
    (line,) = [line for line in blocks(REPOSITORY / "docs" / "launch" / "slurm.md")[0].splitlines() if "slurm_gpu.sbatch" in line]
    assert programs.run(["bash", "-ec", line]).returncode == 0
    (call,) = programs.calls("sbatch")
    assert (REPOSITORY / call.arguments[-1]).is_file()
    (needed,) = re.findall(r"^for name in (.*?); do ", (LAUNCH / "slurm_gpu.sbatch").read_text(), re.MULTILINE)
    assert all(call.environment.get(name) for name in needed.split())


@pytest.mark.skipif(shutil.which("sky") is None, reason="SkyPilot is not installed")
def test_skypilot_reads_the_file(tmp_path):
    code = (
        "import sys, yaml, sky; task = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])), env_overrides=[('BUCKET', 'b')]); "
        "print(task.num_nodes, *[r.job_recovery['recover_on_exit_codes'] for r in task.resources])"
    )
    python = Path(shutil.which("sky")).parent / "python"
    result = Programs(tmp_path).run([str(python), "-c", code, str(LAUNCH / "skypilot.yaml")])
    assert result.stdout.splitlines()[-1:] == ["2 [75]"], result.stderr
