"""Measures our engine beside transformers and llama.cpp on this CPU: `make bench-engine`, documented in docs/benchmarks/README.md.

Repeats are interleaved, one engine after the other, and a row is the median of its repeats. What an engine cannot do is left out of
the table and said below it. Ends by itself: after BENCH_SECONDS no new measurement is begun.
"""

import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import models
from engines import Failed, Ours, Peer

QUICK = os.environ.get("QUICK") == "1"
THREADS = int(os.environ.get("THREADS", "2"))
REPEATS = int(os.environ.get("REPEATS", "2" if QUICK else "3"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "240" if QUICK else "2400"))
ROOT = Path(__file__).resolve().parents[2]
PREFIX_TOKENS = 1000

STARTED = time.monotonic()
RANDOM = random.Random(5)
rows, notes = [], []


def say(text):
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def note(text):
    notes.append(text)
    say(text)


def tokens(count):
    return [RANDOM.randrange(3, models.VOCABULARY) for _ in range(count)]


def request(prompt, answer):
    return {"prompt": tokens(prompt), "tokens": answer}


def mixed(count, prompts, answers):
    """Requests as a server sees them: lengths between two bounds, evenly spread on a logarithmic scale, in a random order."""
    def spread(bounds):
        low, high = bounds
        lengths = [round(low * (high / low) ** (index / max(count - 1, 1))) for index in range(count)]
        RANDOM.shuffle(lengths)
        return lengths
    return [request(*lengths) for lengths in zip(spread(prompts), spread(answers))]


def spread_of(values):
    middle = statistics.median(values)
    return {"median": middle, "least": min(values), "most": max(values), "repeats": len(values)}


def add_row(metric, unit, better, ours, peer=None, theirs=None, goal=None):
    """One row; `ours` and `theirs` are lists of measurements."""
    row = {"metric": metric, "unit": unit, "ours": statistics.median(ours), "better": better, "oursSpread": spread_of(ours)}
    if theirs:
        row |= {"peer": peer, "theirs": statistics.median(theirs), "theirsSpread": spread_of(theirs)}
        ratio = row["ours"] / row["theirs"] if better == "higher" else row["theirs"] / row["ours"]
        row["ratio"] = ratio
    if goal is not None:
        row["goal"] = goal
    rows.append(row)


def measure(engines, jobs, concurrency, what):
    """{engine: [answer of each repeat]}, interleaved; an engine that fails is dropped from this measurement."""
    answers = {engine.name: [] for engine in engines}
    going = list(engines)
    for repeat in range(REPEATS):
        for engine in list(going):
            if time.monotonic() - STARTED > SECONDS:
                note(f"{what}: cut after {repeat} repeats, as BENCH_SECONDS={SECONDS:.0f} have passed")
                return answers
            try:
                answer = engine.run(jobs(repeat), concurrency)
                answers[engine.name].append(answer)
                say(f"{what}: {engine.name}: {answer['seconds']:.2f} s")
            except (Failed, OSError) as error:
                note(f"{what}: {engine.name} cannot be measured: {error}")
                going.remove(engine)
    return answers


def first_tokens(answers):
    times = [[result["first"] for result in answer["results"]] for answer in answers]
    return [statistics.median(row) for row in times if None not in row]


def compare(metric, unit, better, answers, value, goals):
    ours = value(answers.get("fairlead", []))
    if not ours:
        return
    for peer, theirs in answers.items():
        if peer != "fairlead" and (theirs := value(theirs)):
            add_row(metric, unit, better, ours, peer, theirs, goals.get(peer))


def side_by_side(label, engines, large):
    """Prefill, decode and time to first token of all engines."""
    scale = 4 if large or QUICK else 1
    fixed = {}

    def same(name, make):
        # The same requests for every engine of a repeat, others in the next: a prefix cache must not know them.
        return lambda repeat: fixed.setdefault((name, repeat), make())

    prompt = 256 if large else 512
    answers = measure(engines, same("prefill", lambda: [request(prompt, 1)]), 1, f"{label} prefill")
    value = lambda runs: [prompt / run["results"][0]["first"] for run in runs if run["results"][0]["first"]]
    compare(f"{label}: prefill, one prompt of {prompt}", "tokens/s", "higher", answers, value, {})

    count = 64 // scale
    answers = measure(engines, same("decode", lambda: [request(128, count)]), 1, f"{label} decode at 1")

    def decode(runs):
        one = [run["results"][0] for run in runs]
        return [(count - 1) / (result["last"] - result["first"]) for result in one if result["first"]]

    goals = {"transformers": 1.2, "llama.cpp": 0.8}
    compare(f"{label}: decode at concurrency 1", "tokens/s", "higher", answers, decode, goals)
    compare(f"{label}: time to first token at concurrency 1, prompt of 128", "s", "lower", answers, first_tokens, {})

    for concurrency in [4, 16]:
        requests = concurrency if large or QUICK else 2 * concurrency
        make = lambda: mixed(requests, (16, 256 // scale), (8, max(16, 128 // scale)))
        answers = measure(engines, same(concurrency, make), concurrency, f"{label} at {concurrency}")

        def throughput(runs):
            return [sum(len(result["tokens"]) for result in run["results"]) / run["seconds"] for run in runs]

        what = f"{label}: %s, {requests} mixed requests, {concurrency} at a time"
        goals = {"transformers": 4.0} if concurrency == 16 else {}
        compare(what % "generated tokens", "tokens/s", "higher", answers, throughput, goals)
        compare(what % "median time to first token", "s", "lower", answers, first_tokens, {})


def check_agreement(engines):
    """Greedy tokens of all engines in f32 on one prompt, else the table compares different work."""
    job = [request(24, 16)]
    said = {}
    for engine in engines:
        try:
            said[engine.name] = engine.run(job, 1)["results"][0]["tokens"]
        except Failed as error:
            note(f"agreement: {engine.name} cannot be asked: {error}")
    ours = said.pop("fairlead", None)
    for name, theirs in said.items():
        same = next((at for at, pair in enumerate(zip(ours or [], theirs)) if pair[0] != pair[1]), len(theirs))
        note(f"agreement: {same} of {len(theirs)} greedy tokens are those of {name} (f32)")
        if name == "transformers" and same < len(theirs):
            raise SystemExit("error: our greedy tokens are not those of transformers: the engines compute different things")


def difference(after, before, name):
    return after.get(name, 0.0) - before.get(name, 0.0)


def prefix_rows(pod):
    """A shared prefix of 1,000 tokens: the first request computes it, the second finds it."""
    recomputed, found = [], []
    for _ in range(REPEATS + 1):
        prefix = tokens(PREFIX_TOKENS)
        for times in (recomputed, found):
            job = [{"prompt": prefix + tokens(8), "tokens": 1}]
            times.append(pod.run(job, 1)["results"][0]["first"])
    metric = f"llama-100m f32: time to first token, prefix of {PREFIX_TOKENS} in the cache"
    add_row(metric, "s", "lower", found, "recompute", recomputed, 10.0)


def tier_rows(binary, folder, logs):
    """The same where the prefix has left the cache for a slower tier. The cache holds one prompt and a little."""
    token_bytes = 2 * models.SMALL.layers * models.SMALL.kv_heads * models.SMALL.head_dim * 4
    cache = str(token_bytes * 1280)
    with tempfile.TemporaryDirectory() as disk:
        host = ["--kv-cache-bytes", cache, "--max-model-len", "1100", "--host-tier-bytes", str(token_bytes * 16384)]
        small_host = ["--kv-cache-bytes", cache, "--max-model-len", "1100", "--host-tier-bytes", str(token_bytes * 64)]
        to_disk = [*small_host, "--disk-tier", disk, "--disk-tier-bytes", str(4 << 30)]
        for name, arguments in [("host", host), ("disk", to_disk)]:
            pod = Ours(binary, folder, "f32", THREADS, logs / "tiers.log", *arguments)
            try:
                recomputed, found = [], []
                for _ in range(REPEATS):
                    prefix = tokens(PREFIX_TOKENS)
                    for times, others in ((recomputed, 2), (found, 0)):
                        job = [{"prompt": prefix + tokens(8), "tokens": 1}]
                        times.append(pod.run(job, 1)["results"][0]["first"])
                        for _ in range(others):
                            pod.run([request(PREFIX_TOKENS, 1)], 1)
                        # Blocks move to slower tiers beside the steps.
                        time.sleep(0.5)
                if not pod.metrics().get("fairlead_kv_tier_hits_total"):
                    note(f"the {name} tier gave no block back, so there is nothing to compare")
                    continue
                metric = f"llama-100m f32: time to first token, prefix of {PREFIX_TOKENS} in the {name} tier"
                add_row(metric, "s", "lower", found, "recompute", recomputed)
            finally:
                pod.stop()


def speculation_rows(binary, folder, logs):
    """Prompt lookup on a text that repeats itself, as answers about a document do."""
    phrase = tokens(24)
    job = lambda _: [{"prompt": phrase * 8, "tokens": 32 if QUICK else 96}]
    times = {}
    for name, arguments in [("without", []), ("with", ["--speculative-tokens", "4"])]:
        pod = Ours(binary, folder, "f32", THREADS, logs / "speculation.log", "--prefix-sharing", "false", *arguments)
        pod.name = name
        try:
            before = pod.metrics()
            runs = measure([pod], job, 1, f"speculation, {name}")[name]
            times[name] = [(job(0)[0]["tokens"] - 1) / (run["results"][0]["last"] - run["results"][0]["first"]) for run in runs]
            after = pod.metrics()
            drafted = difference(after, before, "vllm:spec_decode_num_draft_tokens_total")
            if drafted:
                accepted = difference(after, before, "vllm:spec_decode_num_accepted_tokens_total") / drafted
                add_row("llama-100m f32: guesses that were right, repetitive text", "share", "higher", [accepted])
        finally:
            pod.stop()
    if times.get("with") and times.get("without"):
        add_row("llama-100m f32: decode with prompt lookup, repetitive text", "tokens/s", "higher", times["with"], "without", times["without"])


def overhead_rows(pod):
    """What a step takes beside the backend: the time between tokens of a lone answer less the time of its steps."""
    shares = []
    for _ in range(REPEATS):
        before = pod.metrics()
        result = pod.run([request(16, 65)], 1)["results"][0]
        after = pod.metrics()
        steps = difference(after, before, "fairlead_step_seconds_sum")
        # From the request's arrival to its last token: also HTTP, the tokenizer and the way through loopback.
        if steps:
            shares.append(max(0.0, 1.0 - steps / result["last"]))
    if shares:
        metric = "llama-100m f32: share of a request's time outside the backend (goal: below 0.03)"
        add_row(metric, "share", "lower", shares)


def conditions():
    def output(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
    wide = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    packages = ["torch", "transformers", "llama-cpp-python"]
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, {' '.join(wide)}, {int(memory) >> 20} GiB",
        "versions": {name: version(name) for name in packages} | {"libtorch": "2.11.0"},
        "commit": output("git", "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "threads": THREADS,
        "repeats": REPEATS,
        "quick": QUICK,
        "loadAverage": list(os.getloadavg()),
        "workload": "random weights and prompts, greedy, no end token; all requests arrive at once; mixed requests have prompts of "
        "16 to 256 and answers of 8 to 128 tokens, evenly spread on a logarithmic scale (a quarter of that for llama-1b and QUICK)",
        "ours": "fairlead-inference over HTTP on loopback, streaming; peers in their own process, called directly",
    }


def table():
    lines = [("metric", "ours", "peer", "theirs", "ratio", "goal", "unit")]
    number = lambda value: f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"
    for row in rows:
        spread = row["oursSpread"]
        ours = f"{number(row['ours'])} ({number(spread['least'])}..{number(spread['most'])})"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        goal = f"{row['goal']:g}{'' if row.get('ratio', 0) >= row['goal'] else ' missed'}" if "goal" in row else ""
        lines.append((row["metric"], ours, row.get("peer", ""), number(row["theirs"]) if "theirs" in row else "", ratio, goal, row["unit"]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def run_models(binary, cache, logs):
    plans = [(models.SMALL, "f32", False), (models.SMALL, "bf16", False), (models.LARGE, "bf16", True)]
    for shape, dtype, large in plans[:1] if QUICK else plans:
        if time.monotonic() - STARTED > SECONDS:
            note(f"{shape.name} {dtype} was not begun: BENCH_SECONDS={SECONDS:.0f} have passed")
            continue
        folder = models.prepare(shape, [dtype], cache)
        label = f"{shape.name} {dtype}"
        say(f"{label}: starting the engines")
        engines = [Ours(binary, folder, dtype, THREADS, logs / "fairlead.log", "--kv-cache-bytes", str(2 << 30))]
        try:
            for name in ("transformers", "transformers-cb", "llama.cpp"):
                if name == "transformers-cb" and QUICK:
                    continue
                try:
                    engines.append(Peer(name, folder, dtype, THREADS))
                except Failed as error:
                    note(f"{label}: {name} does not start: {error}")
            if dtype == "f32":
                check_agreement(engines)
            side_by_side(label, engines, large)
            if shape is models.SMALL and dtype == "f32":
                for extra in (prefix_rows, overhead_rows):
                    attempt(extra, engines[0])
        finally:
            for engine in engines:
                engine.stop()
        if shape is models.SMALL and dtype == "f32":
            for extra in (tier_rows, speculation_rows):
                attempt(extra, binary, folder, logs)


def attempt(measurement, *arguments):
    if time.monotonic() - STARTED > SECONDS:
        return note(f"{measurement.__name__} was not begun: BENCH_SECONDS={SECONDS:.0f} have passed")
    say(measurement.__name__.replace("_", " "))
    try:
        measurement(*arguments)
    except Exception as error:  # one measurement that fails must not cost all others their file
        note(f"{measurement.__name__}: {type(error).__name__}: {error}")


def main():
    # A run that is stopped stops its engines: `finally` runs on SystemExit only.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    binary, cache, target = (Path(argument) for argument in sys.argv[1:])
    logs = cache / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    described = conditions()
    if described["loadAverage"][0] > 0.5:
        note(f"the machine is not quiet: its load average is {described['loadAverage'][0]:.2f}")
    run_models(binary, cache, logs)
    described["notes"] = notes
    described["seconds"] = round(time.monotonic() - STARTED)
    print()
    table()
    print()
    for key, value in described.items():
        print(f"{key}: {value}")
    if not rows:
        raise SystemExit(f"error: nothing could be measured; the logs are in {logs}")
    finite = lambda value: not isinstance(value, float) or math.isfinite(value)
    assert all(finite(value) for row in rows for value in row.values())
    if QUICK:
        return print("QUICK=1: docs/benchmarks/engine.json is not written")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"conditions": described, "rows": rows}, indent=2) + "\n")
    print(f"written: {target}")


if __name__ == "__main__":
    main()
