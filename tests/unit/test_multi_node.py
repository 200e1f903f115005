"""The recipes for several machines, run by the shell that they are for, with the cluster's commands stood in for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gad.config.rollout import VllmServers
from gad.processes import Seat, seat

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Commands of a cluster that say what they were asked to do."""
    commands = {
        "scontrol": 'printf "%s\\n" node07 node08',
        "srun": 'echo "$MASTER_ADDR $MASTER_PORT srun $*"',
        "torchrun": 'echo "torchrun $*"',
    }
    for name, line in commands.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def said(command: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def test_slurm(cluster: dict[str, str]) -> None:
    """The first machine is where all meet, at a port of this job's own; every task is one process of the run."""
    job = {**cluster, "SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_ID": "1234567"}
    script = RECIPES / "multi-node.sbatch"
    words = said(["bash", str(script), "run.yaml", "name=large"], job)
    assert words[0] == "node07"
    assert 20000 <= int(words[1]) < 40000
    assert int(words[1]) != int(said(["bash", str(script), "run.yaml"], {**job, "SLURM_JOB_ID": "1234568"})[1])
    assert words[2:] == [
        "srun",
        "--kill-on-bad-exit=1",
        "gad",
        "run",
        "run.yaml",
        "name=large",
        "compute.shard=machine",
    ]
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    machines, each = int(asked["nodes"]), int(asked["ntasks-per-node"])
    assert each == int(asked["gpus-per-node"])
    task = {
        "SLURM_PROCID": "9",
        "SLURM_STEP_NUM_TASKS": str(machines * each),
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{machines})",
        "MASTER_ADDR": words[0],
        "MASTER_PORT": words[1],
    }
    assert seat(task) == Seat(9, 16, 1, 8, "node07", int(words[1]))


def test_kubernetes(cluster: dict[str, str]) -> None:
    service, job = yaml.safe_load_all((RECIPES / "multi-node-job.yml").read_text(encoding="utf-8"))
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    words = said([*container["command"], *container["args"]], {**cluster, "JOB_COMPLETION_INDEX": "1"})
    options = dict(zip(words[1:11:2], words[2:11:2], strict=True))
    assert options == {
        "--nnodes": str(job["spec"]["completions"]),
        "--nproc-per-node": str(container["resources"]["limits"]["nvidia.com/gpu"]),
        "--node-rank": "1",
        "--master-addr": f"{job['metadata']['name']}-0.{pod['subdomain']}",
        "--master-port": "29500",
    }
    assert words[11:] == ["-m", "gad", "run", "run.yaml", "compute.shard=machine"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 2
    assert job["spec"]["completionMode"] == "Indexed"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_servers_under_slurm_are_started_again(cluster: dict[str, str], tmp_path: Path) -> None:
    """The first two end at once, the third in peace; each is asked for the same."""
    fake = f'echo "$@" >> {tmp_path}/asked; [ $(wc -l < {tmp_path}/asked) -gt 2 ]'
    (tmp_path / "vllm").write_text(f"#!/bin/sh\n{fake}\n", encoding="utf-8")
    (tmp_path / "vllm").chmod(0o755)
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n', encoding="utf-8")
    job = {**cluster, "SLURMD_NODENAME": "node09", "SLURM_LOCALID": "3", "PAUSE": "0"}
    assert said(["bash", str(RECIPES / "vllm-servers.sbatch"), "/models/qwen"], job) == ["http://node09:8003"]
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 3
    assert len(set(asked)) == 1
    assert asked[0].startswith("serve /models/qwen --port 8003 ")
    assert asked[0].endswith('--weight-transfer-config {"backend": "nccl"}')


def test_servers_under_kubernetes() -> None:
    """Its address is what the run file is told to name, and what serves is what a server must be like."""
    service, servers = yaml.safe_load_all((RECIPES / "vllm-servers.yml").read_text(encoding="utf-8"))
    spec, pod = servers["spec"], servers["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert service["metadata"]["name"] == spec["serviceName"]
    assert service["spec"]["selector"] == spec["selector"]["matchLabels"] == pod["metadata"]["labels"]
    port = container["args"][container["args"].index("--port") + 1]
    urls = [f"http://{servers['metadata']['name']}-{n}.{spec['serviceName']}:{port}" for n in range(spec["replicas"])]
    assert urls[0] in (RECIPES / "vllm-servers.yml").read_text(encoding="utf-8")
    assert len(VllmServers.model_validate({"urls": urls, "sync_folder": "/runs/sync"}).urls) == 8
    assert json.loads(container["args"][-1]) == {"backend": "nccl"}
    assert {each["name"] for each in container["env"]} == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
