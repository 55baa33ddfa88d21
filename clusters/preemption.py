"""On a spot machine: waits for the cloud's notice and passes it on to Ray, so that Ray Train takes a checkpoint.

    python preemption.py aws|gcp HEAD:PORT

aws.yaml and gcp.yaml start it beside Ray, which does not ask for these notices itself. KubeRay needs none of this: Ray
takes the SIGTERM that a pod gets for the same notice.
"""

import subprocess
import sys
import time
import urllib.request

# Where the machine's metadata is, and the seconds between notice and end, less a few that go by until Ray is told:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html (2 minutes)
# https://cloud.google.com/compute/docs/instances/preemptible (30 seconds)
CLOUDS = {
    "aws": ("http://169.254.169.254/latest", 110),
    "gcp": ("http://metadata.google.internal/computeMetadata/v1", 25),
}


def noticed(cloud: str, metadata: str) -> bool:
    """Whether the machine is about to be taken away."""
    if cloud == "gcp":
        return _ask(f"{metadata}/instance/preempted", {"Metadata-Flavor": "Google"}) == "TRUE"
    token = _ask(f"{metadata}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return _ask(f"{metadata}/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}) != ""


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=5) as answer:
            return answer.read().decode().strip()
    except OSError:  # "not found" among others, by which AWS says that there is no notice
        return ""


def this_node(address: str) -> str:
    """This machine's node id in the Ray cluster."""
    import ray

    with ray.init(address, logging_level="ERROR"):
        return ray.get_runtime_context().get_node_id()


def main(cloud: str, address: str) -> None:
    """Waits for the notice, passes it on, and ends."""
    metadata, seconds = CLOUDS[cloud]
    node = this_node(address)
    while not noticed(cloud, metadata):
        time.sleep(2)
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"notice of {cloud}"]
    deadline = ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(["ray", "drain-node", "--address", address, "--node-id", node, *reason, *deadline], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
