"""Embeds through a gateway with the unmodified OpenAI SDK and prints what it saw as one JSON object.

Usage: sdk_encode.py BASE_URL MODEL
"""

import json
import sys

import openai


def main() -> None:
    base_url, model = sys.argv[1:3]
    # The gateway has no authentication yet; the SDK insists on a key.
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    # The SDK asks for base64 by itself unless told otherwise, and decodes it.
    answer = client.embeddings.create(model=model, input=["hello", "two words"])
    plain = client.embeddings.create(model=model, input="hello", encoding_format="float")
    seen: dict[str, object] = {
        "model": answer.model,
        "indices": [entry.index for entry in answer.data],
        "numbers": [len(entry.embedding) for entry in answer.data],
        "tokens": answer.usage.total_tokens,
        "difference": max(abs(a - b) for a, b in zip(answer.data[0].embedding, plain.data[0].embedding, strict=True)),
    }
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
        seen["chat"] = "accepted"
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        seen["chat"] = {"status": error.status_code, "code": body.get("code")}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
