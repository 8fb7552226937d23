//! What clients can ask of a real pod beyond a plain answer: options, several answers, resuming, tokens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use pod::{Pod, cached_usage, usage};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn body(mut body: Value, extra: Value) -> Value {
    let common = json!({"model": "tiny", "temperature": 0, "max_tokens": 24, "ignore_eos": true});
    for fields in [common, extra] {
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    }
    body
}

fn chat(extra: Value) -> Value {
    body(json!({"messages": [{"role": "user", "content": "hello"}]}), extra)
}

fn text(extra: Value) -> Value {
    body(json!({"prompt": "hello"}), extra)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// The text of a stream's first answer.
fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_resumed_after_any_of_its_tokens() {
    let pod = Pod::start(&[]).await;
    // Biased towards letters that are halves of characters, so that a cut may fall within one.
    let halves: serde_json::Map<String, Value> =
        (97..160).step_by(3).map(|token: u32| (token.to_string(), json!(3))).collect();
    for extra in [
        json!({}),
        json!({"temperature": 1.3, "seed": 7}),
        json!({"temperature": 1.0, "seed": 5, "logit_bias": halves, "presence_penalty": 0.5}),
    ] {
        let mut asked = chat(extra);
        asked["return_token_ids"] = json!(true);
        let (status, whole) = pod.ask(CHAT, asked.clone()).await;
        assert_eq!(status, 200, "{whole}");
        let wanted = whole["choices"][0]["message"]["content"].as_str().unwrap();
        let tokens = ids(&whole["choices"][0]["token_ids"]);
        assert_eq!(tokens.len(), 24);
        asked["stream"] = json!(true);
        asked["stream_options"] = json!({"include_usage": true});
        let chunks = pod.stream(CHAT, asked.clone()).await;
        assert_eq!(content(&chunks), wanted);
        assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
        for cut in 1..tokens.len() {
            // What a client has when the stream breaks off: the chunks with the first tokens.
            let mut seen = Vec::new();
            let before: Vec<Value> = chunks
                .iter()
                .take_while(|chunk| {
                    let known = seen.len() < cut;
                    if known && chunk["choices"][0]["token_ids"].is_array() {
                        seen.extend(ids(&chunk["choices"][0]["token_ids"]));
                    }
                    known
                })
                .cloned()
                .collect();
            assert_eq!(seen, tokens[..cut]);
            asked["resume_token_ids"] = json!(seen);
            let rest = pod.stream(CHAT, asked.clone()).await;
            assert_eq!(format!("{}{}", content(&before), content(&rest)), wanted, "cut after {cut}");
            // What is in the cache by now is another matter.
            let usage = &rest.last().unwrap()["usage"];
            for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
                assert_eq!(usage[count], whole["usage"][count], "cut after {cut}");
            }
        }
        asked["resume_token_ids"] = json!([]);
    }
    // The same with a prompt of tokens.
    let asked = text(json!({"prompt": [0, 9, 10, 11], "return_token_ids": true}));
    let (_, whole) = pod.ask(TEXT, asked.clone()).await;
    let (tokens, wanted) =
        (ids(&whole["choices"][0]["token_ids"]), whole["choices"][0]["text"].as_str().unwrap());
    for cut in [1, 11, 23] {
        let mut resumed = asked.clone();
        resumed["resume_token_ids"] = json!(tokens[..cut]);
        let (status, rest) = pod.ask(TEXT, resumed).await;
        assert_eq!(status, 200, "{rest}");
        assert!(wanted.ends_with(rest["choices"][0]["text"].as_str().unwrap()));
        assert_eq!(ids(&rest["choices"][0]["token_ids"]), tokens[cut..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_message_is_continued_where_it_ends() {
    let pod = Pod::start(&[]).await;
    // Only whole letters: halves of characters have no text that could be sent back.
    let halves: serde_json::Map<String, Value> =
        (98..160).map(|token: u32| (token.to_string(), json!(-100))).collect();
    let plain = json!({"return_token_ids": true, "logit_bias": halves});
    let (_, whole) = pod.ask(CHAT, chat(plain.clone())).await;
    let wanted = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let prompt = ids(&whole["prompt_token_ids"]);
    let tokens = ids(&whole["choices"][0]["token_ids"]);
    for cut in 1..tokens.len() {
        let begun = &wanted[..cut];
        let messages = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": begun}]);
        let mut asked = chat(plain.clone());
        asked["messages"] = messages;
        asked["continue_final_message"] = json!(true);
        asked["max_tokens"] = json!(tokens.len() - cut);
        let (status, rest) = pod.ask(CHAT, asked).await;
        assert_eq!(status, 200, "{rest}");
        assert_eq!(ids(&rest["prompt_token_ids"]), [&prompt[..], &tokens[..cut]].concat());
        let rest = rest["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(format!("{begun}{rest}"), wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_becomes_tokens_and_tokens_text() {
    let pod = Pod::start(&[]).await;
    let (status, tokens) =
        pod.ask("/tokenize", json!({"model": "tiny", "prompt": "a b", "return_token_strs": true})).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!((&tokens["count"], &tokens["token_strs"]), (&json!(4), &json!(["<|begin|>", "a", "Ġ", "b"])));
    assert!(tokens["max_model_len"].as_u64().unwrap() > 100);
    let (_, back) = pod.ask("/detokenize", json!({"model": "tiny", "tokens": tokens["tokens"]})).await;
    assert_eq!(back["prompt"], "<|begin|>a b");
    let bare = json!({"model": "tiny", "prompt": "a b", "add_special_tokens": false});
    let (_, bare) = pod.ask("/tokenize", bare).await;
    assert_eq!((&bare["count"], &bare["token_strs"]), (&json!(3), &Value::Null));
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]});
    let (_, chat) = pod.ask("/tokenize", chat).await;
    // A pod has one model, so none need be named.
    let (status, back) = pod.ask("/detokenize", json!({"tokens": chat["tokens"]})).await;
    assert_eq!((status, &back["prompt"]), (200, &json!("<|begin|>user: hello\n")));
    let (status, again) = pod.ask("/tokenize", json!({"prompt": "a b"})).await;
    assert_eq!((status, &again["tokens"]), (200, &tokens["tokens"]));
    for (path, wrong, status, param) in [
        ("/tokenize", json!({"model": "other", "prompt": "a"}), 404, "model"),
        ("/detokenize", json!({"model": "tiny", "tokens": [160]}), 400, "tokens"),
        ("/tokenize", json!({"model": "tiny", "prompt": "x".repeat(10_000_000)}), 400, "prompt"),
    ] {
        let (found, answer) = pod.ask(path, wrong).await;
        assert_eq!((found, answer["error"]["param"].as_str()), (status, Some(param)), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_options_do_what_they_say() {
    let pod = Pod::start(&[]).await;
    let (_, plain) = pod.ask(CHAT, chat(json!({"return_token_ids": true}))).await;
    let content = plain["choices"][0]["message"]["content"].as_str().unwrap();
    // The string that ends an answer may be shown.
    let stop: String = content.chars().skip(4).take(3).collect();
    let shown = chat(json!({"stop": stop, "include_stop_str_in_output": true}));
    let (_, shown) = pod.ask(CHAT, shown).await;
    let end = content.find(&stop).unwrap() + stop.len();
    assert_eq!(shown["choices"][0]["message"]["content"], content[..end]);
    // A token that ends it counts, and its text is left out.
    let tokens = ids(&plain["choices"][0]["token_ids"]);
    let first = tokens.iter().position(|token| *token == tokens[5]).unwrap();
    let (_, stopped) = pod.ask(CHAT, chat(json!({"stop_token_ids": [tokens[5]]}))).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["usage"]["completion_tokens"], first + 1);
    // The usage so far comes with every chunk where it is asked for.
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks = pod.stream(CHAT, chat(json!({"stream": true, "stream_options": options}))).await;
    let counts: Vec<u64> =
        chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts.last() == Some(&24), "{counts:?}");
    // A request that may take a millisecond takes no more.
    let late = chat(json!({"max_tokens": 400}));
    let answer = pod.post(CHAT, &late).header("x-request-timeout-ms", "1").send().await.unwrap();
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "deadline_passed");
    // Nor while its form is compiled.
    let values: Vec<String> = (0..4000).map(|number| format!("value {number}")).collect();
    let schema = json!({"name": "large", "schema": {"enum": values}});
    let form = json!({"type": "json_schema", "json_schema": schema});
    let slow = chat(json!({"ignore_eos": false, "response_format": form}));
    let answer = pod.post(CHAT, &slow).header("x-request-timeout-ms", "1").send().await.unwrap();
    let status = answer.status();
    let message = answer.json::<Value>().await.unwrap()["error"]["message"].to_string();
    assert!(status == 504 && message.contains("was compiled"), "{status} {message}");
    let wrong = pod.post(CHAT, &late).header("x-request-timeout-ms", "soon").send().await.unwrap();
    assert_eq!(wrong.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_tells_what_was_in_the_cache() {
    let pod = Pod::start(&[]).await;
    let long = "the quick brown fox jumps over the lazy dog ".repeat(4);
    let asked = chat(json!({"messages": [{"role": "user", "content": long}], "max_tokens": 2}));
    let (status, first) = pod.ask(CHAT, asked.clone()).await;
    assert_eq!(status, 200, "{first}");
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(first["usage"], usage(prompt, 2));
    let (_, second) = pod.ask(CHAT, asked.clone()).await;
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > prompt / 2 && cached < prompt, "{second}");
    let mut streaming = asked;
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    for chunk in pod.stream(CHAT, streaming).await {
        assert_eq!(chunk["usage"]["prompt_tokens_details"]["cached_tokens"], cached, "{chunk}");
    }

    // Of several prompts it is the sum.
    let prompt = |number: u32| format!("{number} {long}");
    let one = |number: u32| pod.ask(TEXT, text(json!({"prompt": prompt(number), "max_tokens": 1})));
    let (_, fresh) = one(1).await;
    let read = fresh["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(fresh["usage"], usage(read, 1));
    let (_, again) = one(1).await;
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0, "{again}");
    one(2).await;
    let both = text(json!({"prompt": [prompt(1), prompt(2), "new"], "max_tokens": 1}));
    let (_, whole) = pod.ask(TEXT, both.clone()).await;
    assert_eq!(whole["usage"], cached_usage(2 * read + 4, 3, 2 * cached));
    let mut streaming = both;
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({"include_usage": true});
    let chunks = pod.stream(TEXT, streaming).await;
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_token_begins_is_a_place_in_the_text() {
    let pod = Pod::start(&[]).await;
    // Only letters, so that each token of the answer is one.
    let letters: serde_json::Map<String, Value> =
        (66..92).map(|token: u32| (token.to_string(), json!(50))).collect();
    let scored = json!({"echo": true, "logprobs": 0, "max_tokens": 3, "logit_bias": letters});
    // é is two tokens, the special token is none of the text.
    for prompt in [json!("ab é c"), json!([0, 66, 67, 0, 96, 131, 106, 96, 68])] {
        let mut asked = text(scored.clone());
        asked["prompt"] = prompt;
        let (status, answer) = pod.ask(TEXT, asked.clone()).await;
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        let characters: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        let logprobs = &choice["logprobs"];
        let offsets = ids(&logprobs["text_offset"]);
        assert_eq!(characters[..6], ['a', 'b', ' ', 'é', ' ', 'c']);
        for (offset, token) in offsets.iter().zip(logprobs["tokens"].as_array().unwrap()) {
            let token = token.as_str().unwrap();
            let mut letters = token.chars();
            if let (Some(letter), None) = (letters.next(), letters.next())
                && letter.is_ascii()
            {
                assert_eq!(characters[*offset as usize], letter, "{choice}");
            }
        }
        assert_eq!(*offsets.last().unwrap() as usize, characters.len() - 1);
        asked["stream"] = json!(true);
        let chunks = pod.stream(TEXT, asked).await;
        let streamed: Vec<u32> =
            chunks.iter().flat_map(|chunk| ids(&chunk["choices"][0]["logprobs"]["text_offset"])).collect();
        assert_eq!(streamed, offsets);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_learns_the_tokens_of_a_stream_from_notes_beside_its_events() {
    let pod = Pod::start(&["--revision", "abc"]).await;
    let ask = |asked: Value, headers: &'static [(&'static str, &'static str)]| {
        let request = pod.client.post(format!("{}{CHAT}", pod.url)).json(&asked);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };
    let mut asked = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let plain = ask(asked.clone(), &[]).await.unwrap();
    assert!(plain.headers().get("x-fairlead-resumable").is_none());
    let plain = plain.text().await.unwrap();
    assert!(!plain.contains("\n: ") && !plain.starts_with(':'));

    let noted = ask(asked.clone(), &[("x-fairlead-resumable", "true")]).await.unwrap();
    assert_eq!(noted.headers()["x-fairlead-resumable"], "true");
    let noted = noted.text().await.unwrap();
    let notes: Vec<&str> = noted.lines().filter(|line| line.starts_with(": ")).collect();
    let begun: Vec<&str> = notes[0].split(' ').collect();
    assert_eq!((begun[..2].to_vec(), notes.len()), (vec![":", "answer"], 25), "{noted}");
    assert!(
        notes[1..24].iter().all(|note| note.starts_with(": tokens 0 "))
            && notes[24].starts_with(": ended 0 ")
    );
    // Without them it is what everybody gets, but for its name and time.
    let shape = |text: &str| -> Vec<Value> {
        let events = text.lines().filter_map(|line| line.strip_prefix("data: {"));
        let mut events: Vec<Value> =
            events.map(|event| serde_json::from_str(&format!("{{{event}")).unwrap()).collect();
        for event in &mut events {
            (event["id"], event["created"]) = (Value::Null, Value::Null);
            event["usage"]["prompt_tokens_details"] = Value::Null;
        }
        events
    };
    assert_eq!(shape(&noted), shape(&plain));

    // It goes on under the same name, without a second beginning, even where no token had come yet.
    let token: u32 = notes[1].rsplit(' ').next().unwrap().parse().unwrap();
    for resumed in [json!([]), json!([token])] {
        asked["resume_token_ids"] = resumed;
        let headers = &[
            ("x-fairlead-resumable", "true"),
            ("x-fairlead-continues", "chatcmpl-1 42"),
            ("x-fairlead-if-revision", "abc"),
        ];
        let rest = ask(asked.clone(), headers).await.unwrap().text().await.unwrap();
        assert!(rest.starts_with(": answer chatcmpl-1 42 ") && !rest.contains("\"role\""), "{rest}");
        assert!(rest.contains("\"id\":\"chatcmpl-1\"") && rest.contains("\"created\":42"), "{rest}");
    }
    let other = ask(asked.clone(), &[("x-fairlead-if-revision", "other")]).await.unwrap();
    assert_eq!(other.status(), 412);
    let error: Value = other.json().await.unwrap();
    assert_eq!(error["error"]["code"], "revision_mismatch");
    assert_eq!(ask(asked, &[("x-fairlead-continues", "nonsense")]).await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_in_a_resumed_text_are_counted_from_its_beginning() {
    let pod = Pod::start(&[]).await;
    let asked = text(json!({"return_token_ids": true, "logprobs": 0, "temperature": 1.1, "seed": 3}));
    let (_, whole) = pod.ask(TEXT, asked.clone()).await;
    let tokens = ids(&whole["choices"][0]["token_ids"]);
    let places = whole["choices"][0]["logprobs"]["text_offset"].as_array().unwrap();
    for cut in [1, 7, 23] {
        let mut resumed = asked.clone();
        resumed["resume_token_ids"] = json!(tokens[..cut]);
        let (status, rest) = pod.ask(TEXT, resumed).await;
        assert_eq!(status, 200, "{rest}");
        assert_eq!(rest["choices"][0]["logprobs"]["text_offset"], json!(places[cut..]), "after {cut}");
    }
}
