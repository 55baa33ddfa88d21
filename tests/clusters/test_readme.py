"""clusters/README.md keeps its word: files, flags, versions, and three commands for each kind."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal import gpu

ROOT = Path(__file__).parent.parent.parent
CLUSTERS = ROOT / "clusters"
README = (CLUSTERS / "README.md").read_text()
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
KINDS = {
    "Laptop": ("ray start", "ray job submit", "ray stop"),
    "AWS": ("ray up -y clusters/aws.yaml", "ray job submit", "ray down -y clusters/aws.yaml"),
    "Google Cloud": ("ray up -y clusters/gcp.yaml", "ray job submit", "ray down -y clusters/gcp.yaml"),
    "Kubernetes": ("kubectl apply -f", "ray job submit", "kubectl delete -f"),
    "Slurm": ("sbatch", "python -m tt_ray.train", "scancel"),
    "Your own hosts": ("ray up -y clusters/onprem.yaml", "ray job submit", "ray down -y clusters/onprem.yaml"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_started_submitted_to_and_torn_down(kind: str) -> None:
    section = README.split(f"\n## {kind}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert any(all(command in block for command in KINDS[kind]) for block in blocks)
    assert f"[{kind.lower()}](#" in README.split("\n## ")[0].lower()


def test_every_link_leads_somewhere() -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert all((CLUSTERS / link).exists() for link in links)
    assert all((ROOT / path).exists() for path in re.findall(r"clusters/[\w./-]+[a-z]", README))


def test_runs_name_recipes_and_fields_that_exist() -> None:
    text = README + (CLUSTERS / "slurm.sbatch").read_text() + (CLUSTERS / "kuberay" / "rayjob.yaml").read_text()
    runs = [shlex.split(line, comments=True) for line in re.findall(r"python -m tt_ray\.train (\w.*)", text)]
    assert len(runs) >= 8
    for recipe, *arguments in runs:
        assert recipe in RECIPES or recipe == "RECIPE"
        assert {name.removeprefix("--") for name in arguments[::2]} <= set(Config.paths())


def test_ray_and_python_are_those_of_the_constraints() -> None:
    files = [path for path in CLUSTERS.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    text = "\n".join(path.read_text() for path in files)
    assert set(re.findall(r"(?:Ray |rayVersion: |tt-ray:)(\d+\.\d+\.\d+)", text)) == {PINS["ray"]}
    pythons = set(re.findall(r"(?:--python |FROM python:|Python )(\d+\.\d+\.\d+)", text))
    (minor,) = re.findall(r"Python (\d\.\d+)", (ROOT / "constraints.txt").read_text())
    assert len(pythons) == 1 and pythons.pop().startswith(f"{minor}.")
    assert len(set(re.findall(r"astral(?:\.sh/uv/|-sh/uv:)([\d.]+)[:/ ]", text))) == 1
    for kind in ("raycluster", "rayjob"):
        assert f"rayVersion: {PINS['ray']}" in (CLUSTERS / "kuberay" / f"{kind}.yaml").read_text()


def test_torch_for_older_drivers_is_that_of_the_constraints() -> None:
    """A local version, +cu126, is equal to what is pinned; and what an error about a GPU links is there."""
    (line,) = re.findall(r"\npip install (.+) --index-url https://download\.pytorch\.org/whl/cu\d+\n", README)
    assert dict(each.split("==") for each in line.split()) == {name: PINS[name] for name in ("torch", "torchvision")}
    page, _, section = (ROOT / gpu.PAGE).name.partition("#")
    assert gpu.PAGE.startswith("clusters/README.md") and page == "README.md" and f"\n## {section.title()}\n" in README


def test_the_clouds_commands_install_what_their_heads_do() -> None:
    for kind in ("aws", "gcp"):
        (command,) = yaml.safe_load((CLUSTERS / f"{kind}.yaml").read_text())["head_setup_commands"]
        (package,) = re.findall(r"[\w-]+==[\d.]+", command)
        assert f"\npip install {package}" in README
