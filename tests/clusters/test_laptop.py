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


@pytest.mark.slow
@pytest.mark.cluster
def test_starting_submitting_and_stopping(tmp_path: Path) -> None:
    if subprocess.run([*ALONE, PREPARE], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces, and the commands unshare, ip and mount")
    token, laptop = (
        re.search(r"```bash\n(.*?)```", README.split(heading)[1], re.DOTALL)
        for heading in ("**Who may reach it.**", "\n## Laptop\n")
    )
    assert token and laptop
    submit = laptop[1].replace("$PWD/runs", f"{tmp_path}/runs")
    small = "--train.epochs 1 --data.shapes.train_size 128 --data.shapes.val_size 64"
    commands = "\n".join([PREPARE, token[1], submit.replace("--run.num_workers 2", f"--run.num_workers 2 {small}")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    answer = subprocess.run([*ALONE, commands], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (tmp_path / "runs" / "shapes_textteacher" / "result.json").is_file()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
