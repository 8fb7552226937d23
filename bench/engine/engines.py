"""How the driver talks to engines: ours over HTTP on loopback, the others through a pipe. All have `run(requests, concurrency)`."""

import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
MODEL = "bench"


class Failed(Exception):
    """An engine cannot do what was asked; the driver says so and goes on."""


class Peer:
    """An engine of peers.py."""

    def __init__(self, name, folder, dtype, threads):
        self.name = name
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        arguments = [sys.executable, str(HERE / "peers.py"), name, str(folder), dtype, str(threads)]
        self.log = open(folder / f"{name}.log", "w")
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment
        )
        self.read(seconds=240)

    def read(self, seconds):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            raise Failed(f"{self.name} gave no answer in {seconds} s; its log is {self.log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def run(self, requests, concurrency, seconds=300):
        job = {"requests": requests, "concurrency": concurrency}
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        return self.read(seconds)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Ours:
    """A pod of ours, as it runs in a cluster, on a port of loopback."""

    name = "fairlead"

    def __init__(self, binary, folder, dtype, threads, log, *more):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = [
            *(str(binary), "--log", "warn", "serve", "--model", str(folder), "--listen", f"127.0.0.1:{self.port}"),
            *("--served-model-name", MODEL, "--device", "cpu", "--dtype", dtype, "--threads", str(threads)),
            *("--drain-delay-seconds", "0", "--drain-seconds", "1", *more),
        ]
        self.log = open(log, "a")
        self.process = subprocess.Popen(arguments, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 240
        while self.get("/readyz") != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Failed(f"the pod does not come up; its log is {log}")
            time.sleep(0.1)

    def get(self, path):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("GET", path)
            answer = connection.getresponse()
            self.text = answer.read().decode()
            return answer.status
        except OSError:
            return None

    def metrics(self):
        """Sums over labels of each sample's value, by name."""
        if self.get("/metrics") != 200:
            raise Failed("/metrics does not answer")
        values = {}
        for line in self.text.splitlines():
            match = re.match(r"([\w:]+)(?:\{([^}]*)\})? (\S+)", line)
            if match and "le=" not in (match[2] or ""):
                values[match[1]] = values.get(match[1], 0.0) + float(match[3])
        return values

    def run(self, requests, concurrency, seconds=300):
        results, gate, failures = [None] * len(requests), threading.Semaphore(concurrency), []
        begun = time.perf_counter()

        def one(index):
            with gate:
                try:
                    results[index] = self.request(requests[index], begun, seconds)
                except Exception as error:
                    failures.append(f"{type(error).__name__}: {error}")

        # Like the others, ours runs so many at a time: the rest wait here, and come as soon as one is answered.
        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise Failed(failures[0])
        return {"seconds": max(result["last"] for result in results), "results": results}

    def request(self, request, begun, seconds):
        body = {
            "model": MODEL,
            "prompt": request["prompt"],
            "max_tokens": request["tokens"],
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Failed(f"status {answer.status}: {answer.read().decode()[:300]}")
        first = last = None
        text, usage = "", None
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if event.get("choices") and event["choices"][0].get("text"):
                last = time.perf_counter() - begun
                first = last if first is None else first
                text += event["choices"][0]["text"]
        if usage is None or usage["completion_tokens"] != request["tokens"] or first is None:
            raise Failed(f"asked for {request['tokens']} tokens, got {usage}")
        tokens = [int(word) for word in re.findall(r"w(\d+)", text)]
        return {"first": first, "last": last, "tokens": tokens}

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
