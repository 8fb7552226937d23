"""Talks to a gateway with the unmodified OpenAI SDK and prints what it saw as one JSON object.

Usage: sdk_chat.py BASE_URL MODEL
"""

import json
import sys

import openai


def main() -> None:
    base_url, model = sys.argv[1:3]
    # The gateway has no authentication yet; the SDK insists on a key.
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    question = [{"role": "user", "content": "Good morning! What do you sell?"}]
    seen: dict[str, object] = {"models": [entry.id for entry in client.models.list()]}

    whole = client.chat.completions.create(model=model, messages=question, max_tokens=24, temperature=0, seed=1)
    seen["text"] = whole.choices[0].message.content
    seen["finish_reason"] = whole.choices[0].finish_reason
    seen["completion_tokens"] = whole.usage.completion_tokens
    seen["model"] = whole.model

    pieces, usage, finish = [], None, None
    stream = client.chat.completions.create(
        model=model,
        messages=question,
        max_tokens=24,
        temperature=0,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    seen["streamed_text"] = "".join(pieces)
    seen["streamed_pieces"] = len([piece for piece in pieces if piece])
    seen["streamed_finish_reason"] = finish
    seen["streamed_completion_tokens"] = usage.completion_tokens if usage else None

    several = client.chat.completions.create(
        model=model, messages=question, max_tokens=6, temperature=1, seed=3, n=3, logprobs=True, top_logprobs=2
    )
    seen["choices"] = [choice.index for choice in several.choices]
    seen["choices_logprobs"] = [len(choice.logprobs.content[0].top_logprobs) for choice in several.choices]

    schema = {
        "type": "object",
        "properties": {"port": {"enum": ["Oslo", "Rome"]}, "ships": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["port", "ships"],
        "additionalProperties": False,
    }
    # This model likes white space more than letters, so it needs room.
    formed = client.chat.completions.create(
        model=model,
        messages=question,
        max_tokens=1000,
        response_format={"type": "json_schema", "json_schema": {"name": "harbour", "schema": schema, "strict": True}},
    )
    seen["formed"] = json.loads(formed.choices[0].message.content)

    completion = client.completions.create(model=model, prompt=[[1, 5, 9]], max_tokens=4, temperature=0, logprobs=2)
    seen["completion_logprobs"] = len(completion.choices[0].logprobs.token_logprobs)

    for name, call in {
        "unknown_model": lambda: client.chat.completions.create(model="no-such-model", messages=question),
        "negative_max_tokens": lambda: client.chat.completions.create(model=model, messages=question, max_tokens=-1),
        # Its chat template knows no tools, so that no call could be read.
        "tools": lambda: client.chat.completions.create(
            model=model, messages=question, tools=[{"type": "function", "function": {"name": "sail"}}]
        ),
        "too_long": lambda: client.completions.create(model=model, prompt=[[5] * 100_000], max_tokens=4),
    }.items():
        try:
            call()
            seen[name] = "accepted"
        except openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            seen[name] = {"status": error.status_code, "code": body.get("code"), "param": body.get("param")}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
