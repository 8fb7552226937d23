"""The other engines, each in a process of its own: `peers.py ENGINE FOLDER DTYPE THREADS` reads jobs as lines of JSON and answers so.

A job is {"requests": [{"prompt": [token…], "tokens": n}…], "concurrency": c}: all requests arrive at once, and c of them run at a
time. The answer is {"seconds": s, "results": [{"first": s, "last": s, "tokens": [token…]}…]}, in seconds from the arrival.
Every engine chooses the likeliest token and goes on to n tokens, whatever they are.
"""

import ctypes
import json
import os
import sys
import time

MOST_BATCHED_TOKENS = 2048
CACHED_TOKENS = 16 * 1024


class Transformers:
    """`generate` on batches: padded on the left, and as long as its longest answer, since that is how it batches."""

    def __init__(self, folder, dtype, threads):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        self.model.generation_config.eos_token_id = None
        self.transformers = transformers

    def run(self, requests, concurrency):
        begun = time.perf_counter()
        results = []
        for at in range(0, len(requests), concurrency):
            results += self.batch(requests[at : at + concurrency], begun)
        return results

    def batch(self, requests, begun):
        torch = self.torch
        width = max(len(request["prompt"]) for request in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request["prompt"]) :] = torch.tensor(request["prompt"])
            mask[row, width - len(request["prompt"]) :] = 1
        times = []

        class Clock(self.transformers.StoppingCriteria):
            def __call__(self, input_ids, scores, **_):
                times.append(time.perf_counter() - begun)
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        longest = max(request["tokens"] for request in requests)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=longest,
                pad_token_id=0,
                stopping_criteria=self.transformers.StoppingCriteriaList([Clock()]),
            )
        return [
            {
                "first": times[0],
                "last": times[request["tokens"] - 1],
                "tokens": output[row, width : width + request["tokens"]].tolist(),
            }
            for row, request in enumerate(requests)
        ]


class TransformersContinuous(Transformers):
    """transformers' own continuous batching: one manager for all jobs, with as many tokens of cache as llama.cpp's below."""

    def __init__(self, folder, dtype, threads):
        super().__init__(folder, dtype, threads)
        generation = self.transformers.GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1, pad_token_id=0)
        # Sized by itself it takes nine tenths of the machine's memory, and each step reads a mask of that width.
        sizes = {"page_size": 256, "num_blocks": CACHED_TOKENS // 256, "max_batch_tokens": MOST_BATCHED_TOKENS}
        batching = self.transformers.ContinuousBatchingConfig(**sizes)
        self.manager = self.model.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
        self.manager.start()
        self.asked = 0

    def run(self, requests, concurrency):
        begun = time.perf_counter()
        results = [None] * len(requests)
        names = {}
        waiting = list(range(len(requests)))
        while waiting or names:
            while waiting and len(names) < concurrency:
                index = waiting.pop(0)
                request = requests[index]
                self.asked += 1
                names[f"request-{self.asked}"] = index
                self.manager.add_request(
                    request["prompt"],
                    request_id=f"request-{self.asked}",
                    max_new_tokens=request["tokens"],
                    record_timestamps=True,
                    eos_token_id=-1,
                )
            done = self.manager.get_result(timeout=60)
            if done is None:
                raise RuntimeError("no answer for a minute")
            if not done.is_finished():
                continue
            if getattr(done, "error", None):
                raise RuntimeError(done.error)
            times = [stamp - begun for stamp in done.timestamps]
            results[names.pop(done.request_id)] = {"first": times[0], "last": times[-1], "tokens": list(done.generated_tokens)}
        return results


class LlamaCpp:
    """llama.cpp through its batch interface, with the loop its server has: answers go on, and new prompts join them."""

    def __init__(self, folder, dtype, threads):
        import llama_cpp
        import numpy

        self.api, self.numpy = llama_cpp, numpy
        llama_cpp.llama_backend_init()
        silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.silent = silent  # llama.cpp keeps the pointer
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        path = os.path.join(folder, f"{dtype}.gguf").encode()
        self.model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path.decode()}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = CACHED_TOKENS
        params.n_batch = params.n_ubatch = MOST_BATCHED_TOKENS
        params.n_ubatch = 512
        params.n_seq_max = 16
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        if dtype == "f32":
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.batch = llama_cpp.llama_batch_init(MOST_BATCHED_TOKENS, 0, 1)

    def run(self, requests, concurrency):
        api, batch = self.api, self.batch
        memory = api.llama_get_memory(self.context)
        api.llama_memory_clear(memory, True)
        begun = time.perf_counter()
        waiting = list(range(len(requests)))
        running = {}  # place in the cache: (request, tokens so far)
        results = [None] * len(requests)
        while waiting or running:
            batch.n_tokens = 0
            asked = []
            for place, (index, tokens) in running.items():
                position = len(requests[index]["prompt"]) + len(tokens) - 1
                asked.append((place, self.push(tokens[-1], position, place, True)))
            for place in [place for place in range(concurrency) if place not in running]:
                if not waiting or batch.n_tokens + len(requests[waiting[0]]["prompt"]) > MOST_BATCHED_TOKENS:
                    break
                index = waiting.pop(0)
                prompt = requests[index]["prompt"]
                for position, token in enumerate(prompt):
                    row = self.push(token, position, place, position + 1 == len(prompt))
                running[place] = (index, [])
                asked.append((place, row))
            if api.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            for place, row in asked:
                logits = self.numpy.ctypeslib.as_array(api.llama_get_logits_ith(self.context, row), (self.vocabulary,))
                index, tokens = running[place]
                tokens.append(int(logits.argmax()))
                now = time.perf_counter() - begun
                if len(tokens) == 1:
                    results[index] = {"first": now}
                if len(tokens) == requests[index]["tokens"]:
                    results[index] |= {"last": now, "tokens": tokens}
                    del running[place]
                    api.llama_memory_seq_rm(memory, place, -1, -1)
        return results

    def push(self, token, position, place, logits):
        batch, row = self.batch, self.batch.n_tokens
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = place
        batch.logits[row] = logits
        batch.n_tokens += 1
        return row


ENGINES = {"transformers": Transformers, "transformers-cb": TransformersContinuous, "llama.cpp": LlamaCpp}


def main():
    engine, folder, dtype, threads = sys.argv[1:]
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        runner = ENGINES[engine](folder, dtype, int(threads))
    except Exception as error:  # whatever it is, the driver prints it and goes on without this engine
        return answer({"error": f"{type(error).__name__}: {error}"})
    answer({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            begun = time.perf_counter()
            results = runner.run(job["requests"], job["concurrency"])
            answer({"seconds": time.perf_counter() - begun, "results": results})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
