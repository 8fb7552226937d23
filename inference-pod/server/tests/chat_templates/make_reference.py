#!/usr/bin/env python3
"""Renders conversations by `transformers` and writes what it makes of them to expected.json.

    make_reference.py          (needs transformers; versions are written into the file)

The templates beside it have the structure of those of Llama 3.1 and 3.2, Qwen2.5 and Qwen3, in words of our own. Each case
is a request to /v1/chat/completions and the prompt that `apply_chat_template` makes of it, its arguments of calls as
objects.
"""

import copy
import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather in a city, e.g. \"Zürich\" or <Paris> & more.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2.5, 1e-7, 1e20, True, None]},
                "none": {},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}

SYSTEM = {"role": "system", "content": " You know the weather.\n"}
ASK = {"role": "user", "content": "How is it in Zürich? 🌧️ <b>\"now\"</b>\t{{ x }}"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": '{"city": "Zürich \\"ZH\\"", "days": [1, 2.50, 1e-7], "x": {"b": null, "a": true}}',
            },
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"rain": 0.5}\nand wind'}
SECOND = {
    "role": "assistant",
    "content": "And the time:",
    "tool_calls": [{"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
}
SECOND_RESULT = {"role": "tool", "tool_call_id": "call_2", "content": "12:00"}
SAY = {"role": "assistant", "content": "It rains, half an inch."}
THANK = {"role": "user", "content": "Thanks! And tomorrow?"}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSun."}
REASONED = {"role": "assistant", "content": "Sun.", "reasoning_content": "\nHm, hm.\n"}
TWO_CALLS = {"role": "assistant", "content": "", "tool_calls": CALL["tool_calls"] + SECOND["tool_calls"]}


def requests(family):
    """Name and request of each case."""
    day = {"date_string": "01 Jan 2026"} if family == "llama3" else {}
    plain = [SYSTEM, ASK, SAY, THANK]
    with_tools = [SYSTEM, ASK, CALL, RESULT, SAY, THANK]
    yield "plain", {"messages": plain}
    yield "no system", {"messages": [ASK]}
    yield "no turn opened", {"messages": plain[:3], "add_generation_prompt": False}
    yield "tools on offer", {"messages": [SYSTEM, ASK], "tools": [WEATHER, CLOCK]}
    yield "tools on offer, no system", {"messages": [ASK], "tools": [WEATHER]}
    yield "a call and its result", {"messages": with_tools[:4], "tools": [WEATHER, CLOCK]}
    yield "talk after a call", {"messages": with_tools, "tools": [WEATHER]}
    yield "call upon call", {
        "messages": [SYSTEM, ASK, CALL, RESULT, SECOND, SECOND_RESULT],
        "tools": [WEATHER, CLOCK],
    }
    yield "calls without tools on offer", {"messages": with_tools}
    yield "a message continued", {"messages": plain[:3], "continue_final_message": True}
    yield "a message with an emoji continued", {
        "messages": [ASK, {"role": "assistant", "content": "Nass 🌧️"}],
        "continue_final_message": True,
    }
    if family == "llama3":
        yield "tools in the system message", {
            "messages": [SYSTEM, ASK],
            "tools": [WEATHER],
            "chat_template_kwargs": {"tools_in_user_message": False},
        }
    else:
        yield "two calls at once", {
            "messages": [ASK, TWO_CALLS, RESULT, SECOND_RESULT],
            "tools": [WEATHER, CLOCK],
        }
    if family == "qwen3":
        yield "no thinking", {"messages": plain, "chat_template_kwargs": {"enable_thinking": False}}
        yield "thoughts are left out", {"messages": [ASK, THOUGHT, THANK]}
        yield "thoughts of the last turn", {"messages": [ASK, THOUGHT], "add_generation_prompt": False}
        yield "thoughts in a field", {"messages": [ASK, REASONED], "add_generation_prompt": False}
    yield "variables", {"messages": [ASK], "chat_template_kwargs": {**day, "custom": "x"}}


def render(template, request):
    messages = copy.deepcopy(request["messages"])
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    continues = request.get("continue_final_message", False)
    rendered, _ = render_jinja_template(
        conversations=[messages],
        tools=request.get("tools"),
        chat_template=template,
        continue_final_message=continues,
        add_generation_prompt=request.get("add_generation_prompt", not continues),
        **{**SPECIAL, **request.get("chat_template_kwargs", {})},
    )
    return rendered[0]


def main():
    cases = []
    for family in ["llama3", "qwen2_5", "qwen3"]:
        template = (HERE / f"{family}.jinja").read_text(encoding="utf-8")
        for name, request in requests(family):
            # Qwen3 thinks before what is continued; ours goes on where the model was (see ChatTemplate::render).
            if family == "qwen3" and request.get("continue_final_message"):
                continue
            cases.append({"template": family, "name": name, "request": request, "prompt": render(template, request)})
    written = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "cases": cases}
    text = json.dumps(written, indent=1, ensure_ascii=False)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
