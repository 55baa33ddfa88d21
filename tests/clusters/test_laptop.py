"""The README's commands for a laptop, typed in namespaces of their own: `ray stop` ends every Ray that it can see."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "clusters" / "README.md").read_text()
# Own processes, network and mounts; what is left when bash ends is killed with it.
ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--net", "--mount-proc", "bash", "-euc"]
PREPARE = "ip link set lo up; mkdir -p /tmp/ray; mount -t tmpfs tmpfs /tmp/ray"


SMALL = "--train.epochs 1 --data.shapes.train_size 128 --data.shapes.val_size 64"


def type_alone(commands: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """The commands' answer in namespaces of their own, with a home and an environment without Ray's variables."""
    if subprocess.run([*ALONE, PREPARE], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces, and the commands unshare, ip and mount")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    typed = [*ALONE, f"{PREPARE}\n{commands}"]
    return subprocess.run(typed, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_readme_s_job_line_works_where_a_training_has_run(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text().split("\n## Your cluster\n")[1]
    found = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert found
    run = f"shapes_baseline {SMALL} --run.storage {tmp_path}/runs"
    job = re.sub(r"in1k_\S+ --data.root \S+ --run.storage \S+", f"{run} --run.name job", found[1])
    assert job.count(str(tmp_path)) == 1
    commands = f"python -m tt_ray.train {run}\nstat -c %a ~/.ray/auth_token\nray start --head --num-cpus 2\n{job}"
    answer = type_alone(commands, tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "\n600\n" in answer.stdout and (tmp_path / "runs" / "job" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.cluster
def test_starting_submitting_and_stopping(tmp_path: Path) -> None:
    token, laptop = (
        re.search(r"```bash\n(.*?)```", README.split(heading)[1], re.DOTALL)
        for heading in ("**Who may reach it.**", "\n## Laptop\n")
    )
    assert token and laptop
    submit = laptop[1].replace("$PWD/runs", f"{tmp_path}/runs")
    commands = f"{token[1]}\n{submit.replace('--run.num_workers 2', f'--run.num_workers 2 {SMALL}')}"
    answer = type_alone(commands, tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (tmp_path / "runs" / "shapes_textteacher" / "result.json").is_file()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
