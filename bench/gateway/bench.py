"""Measures our gateway beside nginx, sglang-router and LiteLLM: `make bench-gateway`, documented in docs/benchmarks/README.md.

The gateway that is measured has one core, the clients and the mock server behind the gateways have another; the other gateways are
stopped meanwhile. Repeats are interleaved, one gateway after the other, and a row is the median of its repeats.
"""

import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gateways
import report
from gateways import Direct, Failed, Process
from report import add_row, compare, note, say

QUICK = os.environ.get("QUICK") == "1"
REPEATS = int(os.environ.get("REPEATS", "1" if QUICK else "3"))
SECONDS = float(os.environ.get("SECONDS_EACH", "2" if QUICK else "10"))
FLAT_SECONDS = float(os.environ.get("FLAT_SECONDS", "20" if QUICK else "600"))
STREAMS = int(os.environ.get("STREAMS", "1000" if QUICK else "10000"))
GATEWAY_CORES = os.environ.get("GATEWAY_CORES", "0")
CLIENT_CORES = os.environ.get("CLIENT_CORES", "1" if (os.cpu_count() or 1) > 1 else "0")
HERE = Path(__file__).resolve().parent
# A Python process on one core answers so few requests that more than this many a second would measure its queue.
FAST_RATE, SLOW_RATE = 1000, 50
SLOW = {"litellm"}


class Clients:
    """wrk, and our own clients where wrk does not keep time."""

    def __init__(self, load, folder):
        self.load, self.folder = load, folder

    def bodies(self, name, count, make):
        paths = []
        for index in range(count):
            path = self.folder / f"{name}-{index}.json"
            path.write_text(json.dumps(make(index)))
            paths.append(path)
        return paths

    def run(self, *command, seconds=120):
        command = ["taskset", "-c", CLIENT_CORES, *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode != 0 or not done.stdout.strip():
            raise Failed(f"{Path(command[3]).name}: {done.stderr.strip()[-300:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def wrk(self, gateway, bodies, connections, seconds):
        command = ["wrk", "--threads", 1, "--connections", connections, "--duration", f"{max(1, round(seconds))}s"]
        command += ["--timeout", "30s", "--script", HERE / "post.lua", gateway.url, "--", *bodies]
        result = self.run(*command, seconds=seconds + 60)
        if result["errors"] or not result["requests"]:
            raise Failed(f"{result['errors']} of {result['requests']} requests failed")
        return result

    def rate(self, gateway, body, rate, seconds):
        address = f"127.0.0.1:{gateway.port}"
        result = self.run(self.load, "rate", "--address", address, "--body", body, "--rate", rate, "--seconds", seconds)
        return checked(result)

    def streams(self, gateway, body, streams, interval):
        address = f"127.0.0.1:{gateway.port}"
        return checked(self.run(
            self.load, "streams", "--address", address, "--body", body, "--streams", streams, "--interval-ms", interval
        ))


def checked(result):
    if result["errors"]:
        raise Failed(f"{result['errors']} requests failed: {result['error']}")
    return result


def chat(content, **more):
    return {"model": gateways.MODEL, "messages": [
        {"role": "system", "content": "You are a helpful assistant who answers in one sentence."},
        {"role": "user", "content": content},
    ], **more}


def long_text(number, bytes_wanted):
    """Prose with what JSON must escape: quotation marks and line breaks."""
    lines, length, index = [], 0, 0
    while length < bytes_wanted:
        line = f'{number}.{index} She said "the fox, the dog and {index * 7919 % 1000} others went over the hill", and left.'
        lines.append(line)
        length += len(line) + 2
        index += 1
    return "\n".join(lines)


def measure(what, targets, once, repeats=REPEATS):
    """{gateway: [result of each repeat]}; all repeats, interleaved. A gateway that fails is left out from then on."""
    results = {target.name: [] for target in targets}
    going = list(targets)
    for _ in range(repeats):
        for target in list(going):
            target.wake()
            try:
                result = once(target)
                results[target.name].append(result)
                say(f"{what}: {target.name}: {json.dumps(result)}")
            except (Failed, subprocess.TimeoutExpired, OSError) as error:
                note(f"{what}: {target.name} cannot be measured: {error}")
                going.remove(target)
            finally:
                target.sleep()
    return results


def values(results, read):
    return {name: [read(result) for result in of_one] for name, of_one in results.items() if of_one}


def with_cpu(target, run):
    before = target.cpu_seconds()
    result = run()
    used = target.cpu_seconds() - before
    result["perSecond"] = result["requests"] / result["seconds"]
    result["cpuMs"] = 1000 * used / result["requests"]
    result["core"] = used / result["seconds"]
    return result


def warm_up(clients, targets):
    """The first answers of some take seconds."""
    bodies = clients.bodies("warm", 1, lambda _: chat(long_text(0, 700)))
    bodies += clients.bodies("warm-stream", 1, lambda _: chat("mock:4:0", stream=True))
    for target in targets:
        target.wake()
        try:
            clients.wrk(target, bodies, 4, 1 if QUICK else 5)
        except (Failed, subprocess.TimeoutExpired) as error:
            say(f"warming up: {target.name}: {error}")
        finally:
            target.sleep()


def saturation(clients, targets):
    plain = clients.bodies("chat", 64, lambda index: chat(f"{index} " + long_text(index, 700)))
    what = "requests/s at saturation, chats of 1 kB, 64 connections"
    results = measure(what, targets, lambda target: with_cpu(target, lambda: clients.wrk(target, plain, 64, SECONDS)))
    compare(what, "requests/s", "higher", values(results, lambda result: result["perSecond"]), {"nginx": 0.8, "litellm": 10.0})
    compare("CPU per request, chats of 1 kB", "ms", "lower", values(results, lambda result: result["cpuMs"]))
    for name, of_one in results.items():
        busy = statistics.median([result["core"] for result in of_one] or [1.0])
        if busy < 0.9:
            note(f"{what}: {name} had {busy:.2f} cores busy: the clients and the mock server were the limit, not it")


def large_prompts(clients, targets):
    bodies = clients.bodies("large", 8, lambda index: chat(long_text(index, 395_000)))
    what = f"prompts of 100k tokens ({bodies[0].stat().st_size // 1000} kB), 8 connections"
    results = measure(what, targets, lambda target: with_cpu(target, lambda: clients.wrk(target, bodies, 8, SECONDS)))
    per_request = values(results, lambda result: result["cpuMs"])
    compare(f"CPU per request, {what}; the limit is 0.05 core per request/s", "ms", "lower", per_request, limit=50.0)
    compare(f"requests/s, {what}", "requests/s", "higher", values(results, lambda result: result["perSecond"]))


def latencies(clients, targets, direct):
    [body] = clients.bodies("rate", 1, lambda _: chat(long_text(0, 700)))
    for rate, wanted in ((FAST_RATE, [target for target in targets if target.name not in SLOW]), (SLOW_RATE, targets)):
        what = f"latency at {rate} requests/s"
        results = measure(what, [direct, *wanted], lambda target: clients.rate(target, body, rate, SECONDS))
        plain = results.pop("direct")
        if not plain:
            continue
        for quantile, limit in (("p50", None), ("p99", 1.0)):
            base = statistics.median(result[quantile] for result in plain)
            added = values(results, lambda result: 1000 * (result[quantile] - base))
            # Two runs of the same differ by some microseconds.
            compare(f"{quantile} of the added {what}, chats of 1 kB", "ms", "lower", added, limit=limit, least=0.01)


def paced_streams(clients, targets, direct):
    """Streams as engines send them, a token now and then: how evenly they arrive, and what each token takes."""
    interval = 20
    tokens = round(SECONDS * 1000 / interval)
    [body] = clients.bodies("paced", 1, lambda _: chat(f"mock:{tokens}:{interval}", stream=True))

    def read(target):
        streams = 20 if target.name in SLOW else 200
        before = target.cpu_seconds()
        result = clients.streams(target, body, streams, interval)
        return result | {"cpuUs": 1e6 * (target.cpu_seconds() - before) / (streams * tokens)}

    what = f"200 streams of a token each {interval} ms (LiteLLM: 20)"
    results = measure(what, [direct, *targets], read)
    for quantile in ("p50", "p99"):
        off = values(results, lambda result: 1000 * result[quantile])
        compare(f"{quantile} of how far the gaps between tokens are off, {what}", "ms", "lower", off)
    results.pop("direct")
    compare(f"CPU per token, {what}", "us", "lower", values(results, lambda result: result["cpuUs"]))


def idle_streams(clients, targets):
    [body] = clients.bodies("idle", 1, lambda _: chat("mock:2:900000", stream=True))

    def hold(target):
        streams = min(STREAMS, 1000) if target.name in SLOW else STREAMS
        before, cpu = target.memory(), target.cpu_seconds()
        command = ["taskset", "-c", CLIENT_CORES, clients.load, "idle", "--address", f"127.0.0.1:{target.port}"]
        command += ["--body", body, "--streams", streams]
        held = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            # Ends by itself when nothing answers: each stream has its deadline.
            line = held.stdout.readline()
            if not line:
                raise Failed("the clients ended")
            result = checked(json.loads(line))
            opened = target.cpu_seconds() - cpu
            settled = time.monotonic() + (1 if QUICK else 5)
            before_rest = target.cpu_seconds()
            while time.monotonic() < settled:
                time.sleep(0.1)
            rest = (target.cpu_seconds() - before_rest) / (1 if QUICK else 5)
            memory = target.memory()
            return {"held": result["held"], "kB": (memory - before) / 1000 / streams, "MB": memory / 1e6,
                    "openMs": 1000 * opened / streams, "idleCore": rest}
        finally:
            held.stdin.close()
            held.wait(60)
            time.sleep(1)

    what = f"{STREAMS} idle streams"
    # Once: gateways keep the memory that the first ones took, and some keep their streams from the server when the clients have gone, until
    # the server may open no more files.
    results = measure(what, targets, hold, repeats=1)
    compare(f"memory per stream, {what} (LiteLLM: at most 1000)", "kB", "lower", values(results, lambda result: result["kB"]))
    same = {name: of_one for name, of_one in results.items() if name not in SLOW or STREAMS <= 1000}
    compare(f"memory with {what}", "MB", "lower", values(same, lambda result: result["MB"]))


def flat_memory(clients, ours):
    """Memory under saturation with prompts that never come twice: whatever remembers them must stay inside its bounds."""
    bodies = clients.bodies("flat", 8, lambda index: chat("@NUMBER@ " + long_text(index, 4_000)))
    bodies += clients.bodies("flat-stream", 8, lambda index: chat("@NUMBER@ mock:16:0 " + long_text(index, 700), stream=True))
    ours.wake()
    samples, ended = [], threading.Event()

    def sample():
        while not ended.wait(max(0.5, FLAT_SECONDS / 120)):
            samples.append(ours.memory() / 1e6)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        result = with_cpu(ours, lambda: clients.wrk(ours, bodies, 64, FLAT_SECONDS))
    finally:
        ended.set()
        sampler.join()
        ours.sleep()
    say(f"memory at saturation: {json.dumps(result)}")
    tenth = max(1, len(samples) // 10)
    # The first tenth is for caches and pools to fill.
    early, late = samples[tenth:2 * tenth], samples[-tenth:]
    span = f"{FLAT_SECONDS / 60:.0f} minutes" if FLAT_SECONDS >= 60 else f"{FLAT_SECONDS:.0f} s"
    metric = f"memory at the end of {span} at saturation ({result['requests']} requests, no prompt twice), against its second tenth"
    add_row(metric, "MB", "lower", late, "itself before", early, 0.95)


def mirroring(clients, ours, direct, start_mirrored):
    """What live requests feel of a shadow that is asked all of them as well."""
    mirrored = start_mirrored()
    try:
        [body] = clients.bodies("mirrored", 1, lambda _: chat(long_text(0, 700)))
        what = f"latency at {FAST_RATE} requests/s, chats of 1 kB, each of them mirrored"
        results = measure(what, [direct, ours, mirrored], lambda target: clients.rate(target, body, FAST_RATE, SECONDS))
        for quantile in ("p50", "p99"):
            base = statistics.median(result[quantile] for result in results["direct"])
            added = values(results, lambda result: 1000 * (result[quantile] - base))
            metric = f"{quantile} of the added {what}"
            add_row(metric, "ms", "lower", added[mirrored.name], "without a shadow", added[ours.name], least=0.01)
        at_a_rate = shadow_counts(mirrored)
        note(f"{what}: what came of the mirrored ones: {json.dumps(at_a_rate)}")
        what = "requests/s at saturation, chats of 1 kB, 64 connections, mirrored as far as 64 at a time go"
        results = measure(what, [ours, mirrored], lambda target: with_cpu(target, lambda: clients.wrk(target, [body], 64, SECONDS)))
        speed = values(results, lambda result: result["perSecond"])
        add_row(what, "requests/s", "higher", speed[mirrored.name], "without a shadow", speed[ours.name])
        note(f"{what}: what came of the mirrored ones: {json.dumps(shadow_counts(mirrored) - at_a_rate)}")
    finally:
        mirrored.stop()


def shadow_counts(gateway):
    """How many requests have been mirrored so far, by what came of it; `Dropped` when too many were running."""
    gateway.wake()
    with urllib.request.urlopen(gateway.metrics, timeout=10) as answer:
        text = answer.read().decode()
    gateway.sleep()
    counts = Counter()
    for line in text.splitlines():
        if line.startswith("fairlead_gateway_shadow_requests_total{"):
            counts[line.split('result="')[1].split('"')[0]] += int(float(line.rsplit(" ", 1)[1]))
    return counts


def open_files(streams):
    """Allows as many files as the streams need, two for each in a gateway, and says how many streams there can be."""
    spare = 400
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = max(hard, 2 * streams + spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if 2 * streams + spare > hard:
            streams = (hard - spare) // 2
            note(f"{streams} idle streams and no more: a process may have no more than {hard} files open here (ulimit -Hn)")
    return streams


def start(binary, nginx, folder, upstreams):
    """The gateways that start; why one does not is noted."""
    def python_version(name):
        try:
            return version(name)
        except PackageNotFoundError as error:
            raise Failed(f"{name} is not installed: {error}") from error

    makers = [
        ("fairlead", lambda: gateways.fairlead(binary, upstreams, GATEWAY_CORES, folder)),
        ("nginx", lambda: gateways.nginx(nginx, upstreams, GATEWAY_CORES, folder)),
        ("sglang-router", lambda: gateways.sglang_router(python_version("sglang-router"), upstreams, GATEWAY_CORES, folder)),
        ("litellm", lambda: gateways.litellm(python_version("litellm"), upstreams, GATEWAY_CORES, folder)),
    ]
    wanted = os.environ.get("GATEWAYS", "").split()
    started = []
    for name, make in makers:
        if wanted and name not in wanted:
            continue
        say(f"starting {name}")
        try:
            gateway = make()
            gateway.sleep()
            started.append(gateway)
        except (Failed, OSError, subprocess.CalledProcessError) as error:
            note(f"{name} does not start and is not measured: {error}")
    return started


def with_shadow(binary, upstreams, folder):
    gateway = gateways.fairlead(binary, upstreams, GATEWAY_CORES, folder, name="fairlead with a shadow", mirrored=64)
    gateway.sleep()
    return gateway


def main():
    # A run that is stopped stops what it has started: `finally` runs on SystemExit only.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    binary, load, nginx, target = (Path(argument) for argument in sys.argv[1:])
    described = report.conditions()
    if described["loadAverage"][0] > 0.5:
        note(f"the machine is not quiet: its load average is {described['loadAverage'][0]:.2f}")
    global STREAMS
    STREAMS = open_files(STREAMS)
    folder = Path(tempfile.mkdtemp(prefix="bench-gateway-"))
    processes = []
    try:
        upstreams = gateways.free_ports(4)
        addresses = [f"127.0.0.1:{port}" for port in upstreams]
        mock = Process("the mock server", [load, "upstream", *addresses], CLIENT_CORES, folder / "upstream.log")
        processes.append(mock)
        mock.wait_for(f"http://{addresses[0]}/health", 10)
        targets = start(binary, nginx, folder, upstreams)
        processes += targets
        if not targets or targets[0].name != "fairlead":
            raise SystemExit("error: our own gateway was not started, see above")
        clients, direct = Clients(load, folder), Direct(upstreams[0])
        warm_up(clients, targets)
        for measurement, arguments in (
            (saturation, (clients, targets)),
            (large_prompts, (clients, targets)),
            (latencies, (clients, targets, direct)),
            (paced_streams, (clients, targets, direct)),
            (idle_streams, (clients, targets)),
            (flat_memory, (clients, targets[0])),
            (mirroring, (clients, targets[0], direct, lambda: with_shadow(binary, upstreams, folder))),
        ):
            if os.environ.get("ONLY") and measurement.__name__ not in os.environ["ONLY"].split():
                continue
            try:
                measurement(*arguments)
            except Exception as error:  # one measurement that fails must not cost all others their file
                note(f"{measurement.__name__}: {type(error).__name__}: {error}")
    finally:
        for process in reversed(processes):
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)
    described |= {
        "versions": {gateway.name: gateway.version for gateway in targets},
        "cores": f"the gateway that is measured: core {GATEWAY_CORES}; clients and mock server: core {CLIENT_CORES}; the other gateways "
        "are stopped meanwhile",
        "repeats": REPEATS,
        "secondsEach": SECONDS,
        "quick": QUICK,
        "upstream": "one mock server on one thread with four addresses; answers of 0.3 kB, events of 0.2 kB",
        "configuration": "fairlead: --manifests, defaults but for --max-in-flight 16384 and --idle-timeout 10m; nginx: one worker, "
        "least_conn, keep-alive upstream, proxy_buffering off, no access log; sglang-router: cache_aware; LiteLLM: one worker, no keys, no database",
        "notes": report.notes,
        "seconds": round(time.monotonic() - report.STARTED),
    }
    print()
    report.table()
    print()
    for key, value in described.items():
        print(f"{key}: {value}")
    if not report.rows:
        raise SystemExit("error: nothing could be measured, see above")
    if QUICK or os.environ.get("ONLY") or os.environ.get("GATEWAYS"):
        return print(f"a part of the benchmark: {target} is not written")
    report.write(target, described)


if __name__ == "__main__":
    main()
