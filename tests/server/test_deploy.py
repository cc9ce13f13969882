"""The files under server/deploy agree with the server: flags, routes, ports, users, variables, metrics."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from sgjax_server import config as server_config
from sgjax_server.app import create_app
from sgjax_server.cli import build_parser
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.middleware.access import OPEN_PATHS

from sgjax import config as engine_config
from sgjax.engine import metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "server" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PORT = ServerConfig().port
USER = 10001


def _dockerfile() -> list[tuple[str, str]]:
    """(Instruction, arguments), without comments, in order."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def _documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def _compose() -> dict[str, Any]:
    return _documents(DEPLOY / "compose.yaml")[0]


def _served(args: list[str]) -> dict[str, Any]:
    """What the command line makes of arguments; it ends the test when it refuses one."""
    return vars(build_parser().parse_args([re.sub(r"\$\{\w+:-(.*?)\}", r"\1", arg) for arg in args]))


def _routes() -> set[str]:
    return set(create_app(EngineHost(None), ServerConfig()).openapi()["paths"])  # type: ignore[arg-type]


def _accelerators() -> set[str]:
    return {args.split(" AS runtime-")[1] for name, args in _dockerfile() if name == "FROM" and " AS runtime-c" in args}


def test_image_installs_what_the_project_offers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert _accelerators() == {"cpu", "cuda", *(extra for extra in extras if extra.startswith("cuda"))}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [
        source
        for name, args in _dockerfile()
        if name == "COPY" and "--from" not in args
        for source in args.split()[:-1]
    ]
    assert "sgjax" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_image_serves_as_somebody_without_rights():
    last = _dockerfile()[-1 - [name for name, _ in reversed(_dockerfile())].index("FROM") :]
    steps = dict(last)
    assert steps["USER"] == f"{USER}:{USER}"
    entrypoint, args = yaml.safe_load(steps["ENTRYPOINT"]), yaml.safe_load(steps["CMD"])
    assert entrypoint == ["sgjax"]
    served = _served(args)
    assert (served["host"], served["port"]) == ("0.0.0.0", PORT)
    assert ("EXPOSE", str(PORT)) in _dockerfile()
    (path,) = re.findall(rf"http://127.0.0.1:{PORT}(/\w+)", steps["HEALTHCHECK"])
    assert path in _routes() & OPEN_PATHS


def test_caches_lie_in_the_volume():
    (volume,) = (args for name, args in _dockerfile() if name == "VOLUME")
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(args for name, args in _dockerfile() if name == "ENV")))
    for name in ("HOME", "SGJAX_CACHE", "HF_HOME"):
        assert Path(variables[name]).is_relative_to(volume)
    for service in _compose()["services"].values():
        assert service["volumes"] == [f"cache:{volume}"]
    (container,) = _deployment()["containers"]
    assert volume in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_compose(name: str):
    service = _compose()["services"][name]
    accelerator = service["build"]["args"]["ACCELERATOR"]
    assert service["image"] == f"sgjax:{accelerator}"
    assert accelerator in _accelerators()
    assert service["profiles"] == [name]
    served = _served(service["command"])
    assert (served["host"], served["port"], served["model_path"]) == ("0.0.0.0", PORT, "embedded")
    (published,) = service["ports"]
    assert published.startswith("127.0.0.1:")
    assert published.endswith(f":{PORT}")
    assert service["cap_drop"] == ["ALL"]
    context = DEPLOY / service["build"]["context"]
    assert (context / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert ":?" in service["environment"]["SGJAX_API_KEY"]  # it does not start without a key


def _deployment() -> dict[str, Any]:
    (document,) = _documents(KUBERNETES / "base" / "deployment.yaml")
    return document["spec"]["template"]["spec"]


def test_pod_has_no_rights():
    pod = _deployment()
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, USER, USER)
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert pod["automountServiceAccountToken"] is False


def test_requests_at_work_may_finish():
    """Whoever stops the server waits for longer than it drains, and than the pod takes to leave its Service."""
    drain_s = ServerConfig().drain_timeout
    pod = _deployment()
    (container,) = pod["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + drain_s + 10
    for service in _compose()["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) >= drain_s + 10
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", _unit(), re.MULTILINE)
    assert int(stop_s) >= drain_s + 10


def test_pod_serves_and_is_probed():
    (container,) = _deployment()["containers"]
    served = _served(container["args"])
    (port,) = container["ports"]
    assert (served["host"], served["port"], port["containerPort"]) == ("0.0.0.0", PORT, PORT)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["path"] in _routes() & OPEN_PATHS
        assert get["port"] == port["name"]
    (service,) = _documents(KUBERNETES / "base" / "service.yaml")
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert container["image"].split(":")[1] in _accelerators()
    (gpu,) = _documents(KUBERNETES / "gpu" / "kustomization.yaml")
    assert gpu["images"][0]["newTag"] in _accelerators()


def test_autoscaling_is_by_a_metric_that_the_server_has():
    (scaler,) = _documents(KUBERNETES / "base" / "autoscaler.yaml")
    (metric,) = scaler["spec"]["metrics"]
    (adapter,) = _documents(KUBERNETES / "monitoring" / "prometheus-adapter-values.yaml")
    (rule,) = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (series,) = re.findall(r'__name__="([^"]+)"', rule["seriesQuery"])
    assert series.startswith(metrics.PREFIX)
    assert f'"{series.removeprefix(metrics.PREFIX)}"' in inspect.getsource(metrics)


def test_every_name_of_kubernetes_is_there():
    """What one manifest calls another by."""
    (kustomization,) = _documents(KUBERNETES / "base" / "kustomization.yaml")
    documents = [_documents(KUBERNETES / "base" / file)[0] for file in kustomization["resources"]]
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    (secret,) = kustomization["secretGenerator"]
    keys = re.findall(r"^(\w+)=$", (KUBERNETES / "base" / "keys.env.example").read_text(), re.MULTILINE)
    (container,) = _deployment()["containers"]
    for variable in container["env"]:
        reference = variable["valueFrom"]["secretKeyRef"]
        assert (reference["name"], reference["key"]) == (secret["name"], variable["name"])
        assert variable["name"] in keys
    claims = [volume["persistentVolumeClaim"] for volume in _deployment()["volumes"] if volume["name"] == "cache"]
    assert [("PersistentVolumeClaim", claim["claimName"]) in names for claim in claims] == [True]
    (monitor,) = _documents(KUBERNETES / "monitoring" / "podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": secret["name"], "key": "SGJAX_API_KEY"}
    assert endpoint["port"] == container["ports"][0]["name"]
    (scaler,) = _documents(KUBERNETES / "base" / "autoscaler.yaml")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in names


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ["base", "gpu", "monitoring"])
def test_kustomize(tmp_path: Path, overlay: str):
    shutil.copytree(KUBERNETES, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "base" / "keys.env.example", tmp_path / "base" / "keys.env")
    built = subprocess.run(["kubectl", "kustomize", tmp_path / overlay], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    images = [
        container["image"]
        for document in yaml.safe_load_all(built.stdout)
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    ]
    assert images == {"base": ["sgjax:cpu"], "gpu": ["sgjax:cuda13"], "monitoring": []}[overlay]


def _unit() -> str:
    return (DEPLOY / "sgjax.service").read_text()


def test_unit():
    (command,) = re.findall(r"^ExecStart=(.*)$", _unit(), re.MULTILINE)
    program, *args = shlex.split(command)
    assert Path(program).name == "sgjax"
    served = _served(args)
    assert (served["host"], served["port"]) == ("127.0.0.1", PORT)
    for line in ("DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="):
        assert line in _unit().splitlines()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_is_one_for_systemd(tmp_path: Path):
    unit = tmp_path / "sgjax.service"
    unit.write_text(_unit().replace("/opt/sgjax/bin/sgjax", sys.executable))
    drop_in = tmp_path / "sgjax.service.d" / "gpu.conf"
    drop_in.parent.mkdir()
    shutil.copy(DEPLOY / "sgjax-gpu.conf", drop_in)
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_variables_are_those_that_the_server_reads():
    known = re.findall(r'"(SGJAX_\w+)"', inspect.getsource(engine_config) + inspect.getsource(server_config))
    of_compose = {"SGJAX_PORT", "SGJAX_MODEL"}  # it puts them into flags
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            used = set(re.findall(r"SGJAX_[A-Z_]*[A-Z]", path.read_text()))
            assert used - set(known) - of_compose == set(), path


def test_flags_in_the_text():
    (commands,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    serve = dict(commands.choices or {})["serve"]
    known = {option for action in serve._actions for option in action.option_strings}
    named = set(re.findall(r"`(--[a-z][a-z-]*)", (DEPLOY / "README.md").read_text()))
    assert named
    assert named - known == set()
