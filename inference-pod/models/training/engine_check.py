#!/usr/bin/env python3
"""Compares the inference pod's greedy answers with transformers', token by token, and adds the result to evaluation.json.

    engine_check.py ../fairlead-tiny-v1 --binary ../../../target/release/fairlead-inference [--record FILE]

`--record` writes some of transformers' answers to FILE, for the tests that run without Python; without `--binary` nothing else is done. The prompts go through the pod's chat endpoint, so its rendering of the chat template is compared too.
"""

import argparse
import http.client
import json
import pathlib
import random
import socket
import subprocess
import tempfile
import time

import torch

import passages
from evaluate import Answerer
from words import Words

MODEL, TOKENS, RECORDED = "small", 72, 20


class Pod:
    def __init__(self, binary, folder, dtype):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen([
            str(binary), "--log", "warn", "serve", "--model", str(folder), "--listen", f"127.0.0.1:{self.port}", "--served-model-name", MODEL,
            "--device", "cpu", "--dtype", dtype, "--threads", "2", "--drain-delay-seconds", "0", "--drain-seconds", "1",
        ], stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 180
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit("the pod does not come up: " + pathlib.Path(self.log.name).read_text()[-2000:])
            time.sleep(0.1)

    def ready(self):
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def answer(self, user):
        body = {"model": MODEL, "messages": [{"role": "user", "content": user}], "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True}
        status, text = self.ask("POST", "/v1/chat/completions", body)
        if status != 200:
            raise SystemExit(f"{status}: {text}")
        whole = json.loads(text)
        choice = whole["choices"][0]
        return whole.get("prompt_token_ids") or choice.get("prompt_token_ids"), choice["token_ids"]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


def prompts(count):
    w = Words(random.Random("engine"), held_out=True)
    users = [passages.item(w, w.rng.choice((2, 3, 4, 5)), w.rng.random() < 0.2, 0.6).prompt for _ in range(count - 4)]
    return users + ["Hello!", "Who are you?", "What is the capital of France?", "Ünïcode – “quotes” and 日本 in one line"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--binary", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--record", type=pathlib.Path)
    arguments = parser.parse_args()
    users, report = prompts(arguments.prompts), {}
    torch.set_num_threads(arguments.threads)
    answerer = Answerer(arguments.model)
    expected = []
    for user in users:
        ids = answerer.tokenizer(answerer.render(user), return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            out = answerer.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
        expected.append((ids[0].tolist(), out[0, ids.shape[1] :].tolist()))
    if arguments.record:
        rows = [{"user": user, "prompt": prompt, "answer": answer} for user, (prompt, answer) in list(zip(users, expected))[-RECORDED:]]
        arguments.record.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
    if not arguments.binary:
        return
    for dtype in ("f32", "bf16"):
        pod = Pod(arguments.binary, arguments.model, dtype)
        try:
            told = [pod.answer(user) for user in users]
        finally:
            pod.stop()
        report[dtype] = {
            "prompts": len(users),
            "same_prompt_tokens": sum(t[0] == e[0] for t, e in zip(told, expected)),
            "same_answers": sum(t[1] == e[1] for t, e in zip(told, expected)),
            "tokens": sum(len(e[1]) for e in expected),
        }
        print(dtype, "against transformers in f32:", report[dtype])
    path = arguments.model / "evaluation.json"
    if path.exists():
        whole = json.loads(path.read_text(encoding="utf-8"))
        whole["engine"] = report
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
