"""Units and manifests in `launch/`: they are read strictly, and ports, paths and commands agree with the settings."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.launch_files import CONFIGS, DEALER_PORT, LAUNCH, SERVER_PORT, SESSION_PORTS, documents, settings

UNITS = sorted((LAUNCH / "systemd").glob("*.service"))
COMPOSE = LAUNCH / "docker" / "compose.yaml"
MANIFESTS = {party: LAUNCH / "kubernetes" / f"{party}.yaml" for party in ("dealer", "server", "client")}
PORTS = {"dealer": DEALER_PORT, "server": SERVER_PORT}


def _unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_its_party_from_its_home(path: Path) -> None:
    role = re.fullmatch(r"splitsec-(dealer|server|client)@?\.service", path.name)
    assert role is not None
    unit = _unit(path)
    home = "%i" if role[1] == "client" else role[1]
    service = unit["Service"]
    assert service["StateDirectory"] == f"splitsec/{home}"
    config = f"/var/lib/splitsec/{home}/{role[1]}.toml"
    assert service["ExecStart"] == f"/opt/splitsec/bin/splitsec {role[1]} --config {config}"
    assert service["Environment"] == f"NUMBA_CACHE_DIR=/var/lib/splitsec/{home}/.cache"
    assert service["User"] != "root"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["CapabilityBoundingSet"]) == (
        "yes",
        "strict",
        "",
    )
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_knows_every_line_of_the_units() -> None:
    done = subprocess.run(["systemd-analyze", "verify", *UNITS], capture_output=True, text=True, check=False)
    other = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    # Some releases begin with what they think of the machine itself.
    assert not [line for line in other if "splitsec" in line], done.stderr


def test_compose_gives_each_party_a_home_of_its_own() -> None:
    (compose,) = documents(COMPOSE)
    services: dict[str, Any] = compose["services"]
    assert set(services) == {"prepare", "dealer", "server", "client-1", "client-2"}
    assert set(settings(CONFIGS / "horizontal" / "server.toml").clients) < set(services)
    for name, service in services.items():
        assert set(service) >= {"image", "build", "cap_drop", "volumes"}
        if name == "prepare":
            continue
        role = name.split("-")[0]
        assert service["volumes"] == [f"{name}:/party"]
        assert service["command"] == [role, "--config", f"/party/{role}.toml", "--events", "json"]
    assert set(compose["volumes"]) == set(services) - {"prepare"}
    assert services["prepare"]["volumes"] == [f"{name}:/homes/{name}" for name in compose["volumes"]]
    # The hosts of the settings are the names of the services.
    assert "/launch/prepare.sh" in services["prepare"]["entrypoint"][2]
    assert " server dealer " in services["prepare"]["entrypoint"][2]
    for name, port in PORTS.items():
        assert f"('127.0.0.1', {port})" in services[name]["healthcheck"]["test"][3]


def test_the_image_holds_what_compose_and_the_manifests_use() -> None:
    lines = (LAUNCH / "docker" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    for source in (source for sources in copied for source in sources):
        assert (LAUNCH.parent / source).exists(), source
    assert 'ENTRYPOINT ["splitsec"]' in lines
    assert "USER splitsec" in lines
    assert "ENV NUMBA_CACHE_DIR=/party/.cache" in lines


@pytest.mark.parametrize("party", MANIFESTS)
def test_a_manifest_runs_its_party_with_a_probe(party: str) -> None:
    kinds = {document["kind"]: document for document in documents(MANIFESTS[party])}
    workload = kinds["Job" if party == "client" else "StatefulSet"]
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["args"] == [party, "--config", f"/party/{party}.toml", "--events", "json"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    # What is mounted is declared, and the init container copies the settings to where the party reads them.
    declared = {volume["name"] for volume in pod["volumes"]}
    declared |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    for holder in (*pod["initContainers"], container):
        assert {mount["name"] for mount in holder["volumeMounts"]} <= declared
    assert f"cp /settings/{party}.toml /party" in pod["initContainers"][0]["command"][2]
    if party == "client":
        assert container["livenessProbe"]["exec"]["command"][0] == "python"
        return
    port = PORTS[party]
    assert container["ports"] == [{"containerPort": port}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"] == {"port": port}
    assert [entry["port"] for entry in kinds["Service"]["spec"]["ports"]] == [port]
    assert kinds["Service"]["spec"]["selector"] == workload["spec"]["template"]["metadata"]["labels"]


def test_the_network_policy_lets_sessions_through() -> None:
    policy = next(one for one in documents(MANIFESTS["server"]) if one["kind"] == "NetworkPolicy")
    first, last = SESSION_PORTS
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": SERVER_PORT}, {"port": first, "endPort": last}]


def test_a_job_of_slurm_has_a_task_for_each_party() -> None:
    text = (LAUNCH / "slurm" / "three_parties.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    started = re.findall(r'^party "\$\{nodes\[(\d)\]\}" (\S+) splitsec (\S+)', text, re.MULTILINE)
    assert int(options["ntasks"]) == int(options["nodes"]) == len(started) == 4
    assert [role for _, _, role in started] == ["dealer", "server", "client", "client"]
    # prepare.sh is told the hosts on which server and dealer run.
    nodes = {role: node for node, _, role in started}
    assert f'"${{nodes[{nodes["server"]}]}}" "${{nodes[{nodes["dealer"]}]}}"' in text


def test_ports_stand_in_the_readme() -> None:
    readme = (LAUNCH / "README.md").read_text()
    assert f"| {SERVER_PORT} | server" in readme
    assert f"| {DEALER_PORT} | dealer" in readme
    assert "| {} to {} | server".format(*SESSION_PORTS) in readme
