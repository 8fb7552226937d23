"""Starts the mock server and the gateways in front of it, and reads what they take of the machine."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

MODEL = "mock"


class Failed(Exception):
    pass


def free_ports(count):
    """Ports that nobody has; all are held until all are known."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Process:
    """A program with its children, on some cores of the machine."""

    def __init__(self, name, command, cores, log, env=None):
        self.name, self.log = name, log
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                ["taskset", "-c", cores, *map(str, command)], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=os.environ | (env or {}), start_new_session=True,
            )

    def processes(self):
        """It and its descendants, those that are still there."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # The name of a process may hold anything, also brackets.
                    parents.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
                except (OSError, IndexError):
                    pass
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo.extend(parents.get(pid, []))
        return found

    def cpu_seconds(self):
        total = 0
        for pid in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
            except OSError:
                pass
        return total / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Bytes of memory, shared ones counted by their part."""
        total = 0
        for pid in self.processes():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
            except (OSError, StopIteration):
                pass
        return total

    def wait_for(self, url, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: {self.last_words()}")
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                pass
            time.sleep(0.1)
        raise Failed(f"{self.name} does not answer at {url}: {self.last_words()}")

    def last_words(self):
        return " | ".join(Path(self.log).read_text(errors="replace").split("\n")[-6:])[-600:]

    def sleep(self):
        """Stopped, so that what it does beside answering takes nothing from the one that is measured."""
        self.signal(signal.SIGSTOP)

    def wake(self):
        self.signal(signal.SIGCONT)

    def signal(self, number):
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def stop(self):
        self.wake()
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Gateway(Process):
    """Listens on 127.0.0.1:`port`."""

    def __init__(self, name, port, command, cores, log, ready="/v1/models", env=None, seconds=30, version=""):
        super().__init__(name, command, cores, log, env)
        self.port, self.version = port, version
        self.url = f"http://127.0.0.1:{port}"
        try:
            self.wait_for(self.url + ready, seconds)
        except BaseException:
            self.stop()
            raise


class Direct:
    """No gateway: what the clients and the mock server take by themselves."""

    name = "direct"

    def __init__(self, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def cpu_seconds(self):
        return 0.0

    def sleep(self):
        pass

    wake = sleep


def fairlead(binary, upstreams, cores, folder, name="fairlead", mirrored=0):
    """`mirrored`: how many requests may be mirrored at a time, every one of them if it is large enough."""
    port, admin = free_ports(2)
    manifests = folder / name
    manifests.mkdir()
    endpoints = ", ".join(f'"http://127.0.0.1:{upstream}"' for upstream in upstreams)
    (manifests / "route.yaml").write_text(
        "apiVersion: fairlead.dev/v1alpha1\nkind: ModelRoute\n"
        f"metadata: {{name: {MODEL}}}\nspec:\n  backends:\n    - {{name: v1, endpoints: [{endpoints}], weight: 1}}\n"
        + f"    - {{name: v2, endpoints: [{endpoints}]}}\n  shadow: {{backend: v2, percent: 100, maxInFlight: {mirrored}}}\n" * bool(mirrored)
    )
    command = [binary, "serve", "--manifests", manifests, "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin}"]
    # Ten thousand streams at once, held for longer than usual; everything else as it comes.
    command += ["--max-in-flight", "16384", "--idle-timeout", "10m"]
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    gateway = Gateway(name, port, command, cores, folder / f"{name}.log", version=version)
    gateway.metrics = f"http://127.0.0.1:{admin}/metrics"
    return gateway


def nginx(binary, upstreams, cores, folder):
    [port] = free_ports(1)
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in upstreams)
    (folder / "nginx").mkdir()
    configuration = folder / "nginx" / "nginx.conf"
    temporary = " ".join(
        f"{kind}_temp_path {folder}/nginx/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    configuration.write_text(f"""
daemon off; worker_processes 1; worker_rlimit_nofile {files}; pid {folder}/nginx/pid; error_log stderr error;
events {{ worker_connections 32768; }}
http {{
  access_log off; {temporary}
  upstream mock {{ least_conn; {servers} keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 1000000; client_max_body_size 16m; client_body_buffer_size 1m;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
""")
    version = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stderr.split("/")[-1].strip()
    command = [binary, "-e", "stderr", "-p", folder / "nginx", "-c", configuration]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]
    return Gateway("nginx", port, command, cores, folder / "nginx.log", version=version)


def sglang_router(version, upstreams, cores, folder):
    port, prometheus = free_ports(2)
    workers = [f"http://127.0.0.1:{upstream}" for upstream in upstreams]
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", port]
    command += ["--prometheus-port", prometheus, "--policy", "cache_aware", "--max-concurrent-requests", 16384, "--log-level", "error"]
    command += ["--worker-urls", *workers]
    gateway = Gateway("sglang-router", port, command, cores, folder / "sglang-router.log", "/readiness", seconds=90, version=version)
    return gateway


def litellm(version, upstreams, cores, folder):
    [port] = free_ports(1)
    configuration = folder / "litellm.yaml"
    deployments = "".join(
        f"  - model_name: {MODEL}\n    litellm_params: {{model: openai/{MODEL}, api_base: 'http://127.0.0.1:{upstream}/v1', "
        "api_key: sk-bench}\n"
        for upstream in upstreams
    )
    configuration.write_text(f"model_list:\n{deployments}")
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR",
           # Without keys, as all of them are run here.
           "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    command = [Path(sys.executable).parent / "litellm", "--config", configuration, "--host", "127.0.0.1", "--port", port]
    command += ["--num_workers", 1]
    log = folder / "litellm.log"
    return Gateway("litellm", port, command, cores, log, "/health/liveliness", env, 180, version)
