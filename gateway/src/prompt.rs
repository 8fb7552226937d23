//! What rules may know of a request's body: how long the prompt is, its last question, and whose it is. Made while the body is
//! read, from what is read anyway. Pure.

use std::io;

use fairlead_openai::chat::MessageContent;
use fairlead_openai::tokenize::TokenizeInput;
use fairlead_openai::{
    ChatCompletionRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, Prompt, RerankRequest,
    TokenizeRequest, Tool,
};

/// Bytes of text that are taken for one token: cheap, and the same whatever the model. Against `cl100k_base` it says 1.15 times the
/// tokens of English prose, 0.94 to 1.01 times those of code, 0.73 of JSON, 0.75 of Japanese and 0.69 of Chinese.
const BYTES_PER_TOKEN: u64 = 4;
/// Most of a question that is kept, of its end.
const LONGEST: usize = 1 << 20;

/// What rules may know of a request's body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PromptFacts {
    /// Tokens, by estimate; exact where token ids were sent.
    pub tokens: u64,
    /// What the user says last; in memory for as long as the request is.
    pub question: String,
    /// The request's own `user`.
    pub user: Option<String>,
}

impl PromptFacts {
    /// Of a conversation: all that is said, the calls of tools and their descriptions count; the question is the user's last
    /// message.
    pub fn of_chat(request: ChatCompletionRequest) -> Self {
        let ChatCompletionRequest { prompt, options, .. } = request;
        let mut facts = Self { user: options.user, ..Self::default() };
        let mut bytes: u64 = prompt.tools.tools.iter().map(bytes_of_tool).sum();
        let mut question = None;
        for message in prompt.messages {
            bytes += message.content.as_ref().map_or(0, bytes_of);
            let calls = message.tool_calls.iter();
            bytes += calls.map(|call| call.function.arguments.len() as u64).sum::<u64>();
            if message.role == "user" {
                question = message.content;
            }
        }
        facts.tokens = tokens_of(bytes);
        facts.question = match question {
            Some(MessageContent::Text(text)) => end_of(text),
            Some(parts) => end_of(parts.text()),
            None => String::new(),
        };
        facts
    }

    /// Of prompts to be completed.
    pub fn of_completion(request: CompletionRequest) -> Self {
        Self { user: request.options.user, ..Self::of_prompts(request.prompts) }
    }

    /// Of texts to be embedded.
    pub fn of_embedding(request: EmbeddingRequest) -> Self {
        Self { user: request.user, ..Self::of_prompts(request.inputs) }
    }

    /// Of documents to be ranked; the question is the query.
    pub fn of_rerank(request: RerankRequest) -> Self {
        let documents: u64 = request.documents.iter().map(|text| text.len() as u64).sum();
        // The query is read again with each document.
        let queries = request.query.len() as u64 * request.documents.len() as u64;
        Self { tokens: tokens_of(documents + queries), question: end_of(request.query), user: None }
    }

    /// Of a text to be tokenized.
    pub fn of_tokenize(request: TokenizeRequest) -> Self {
        match request.input {
            TokenizeInput::Text { prompt, .. } => Self::of_prompts(vec![Prompt::Text(prompt)]),
            TokenizeInput::Chat { prompt, .. } => {
                let bytes = prompt.messages.iter().filter_map(|it| it.content.as_ref()).map(bytes_of).sum();
                let last = prompt.messages.into_iter().rev().find(|message| message.role == "user");
                let question = last.and_then(|message| message.content).map(|content| end_of(content.text()));
                Self { tokens: tokens_of(bytes), question: question.unwrap_or_default(), user: None }
            }
        }
    }

    /// Of tokens to be read.
    pub fn of_detokenize(request: &DetokenizeRequest) -> Self {
        Self { tokens: request.tokens.len() as u64, ..Self::default() }
    }

    fn of_prompts(prompts: Vec<Prompt>) -> Self {
        let mut facts = Self::default();
        let mut texts = Vec::new();
        let mut bytes = 0;
        for prompt in prompts {
            match prompt {
                Prompt::Text(text) => {
                    bytes += text.len() as u64;
                    texts.push(text);
                }
                Prompt::Tokens(tokens) => facts.tokens += tokens.len() as u64,
            }
        }
        facts.tokens += tokens_of(bytes);
        facts.question = end_of(if texts.len() == 1 { texts.remove(0) } else { texts.join("\n") });
        facts
    }
}

fn tokens_of(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

fn bytes_of(content: &MessageContent) -> u64 {
    match content {
        MessageContent::Text(text) => text.len() as u64,
        parts @ MessageContent::Parts(_) => parts.text().len() as u64,
    }
}

/// A tool's description as JSON, which is what chat templates write.
fn bytes_of_tool(tool: &Tool) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut count, &tool.raw);
    count.0
}

fn end_of(mut text: String) -> String {
    if text.len() > LONGEST {
        let mut from = text.len() - LONGEST;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text.drain(..from);
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn chat(messages: Value) -> PromptFacts {
        let body = json!({"model": "m", "user": "ada", "messages": messages}).to_string();
        PromptFacts::of_chat(ChatCompletionRequest::from_slice(body.as_bytes()).expect("a request"))
    }

    #[test]
    fn a_conversation_counts_whole_and_asks_last() {
        let facts = chat(json!([
            {"role": "system", "content": "12345678"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "answer"},
            {"role": "user", "content": [{"type": "text", "text": "last"}, {"type": "text", "text": "one"}]},
            {"role": "assistant", "content": "thinks"},
        ]));
        assert_eq!(facts.question, "last\none");
        assert_eq!(facts.user.as_deref(), Some("ada"));
        // 8 + 5 + 6 + 8 + 6 bytes.
        assert_eq!(facts.tokens, 9);
        assert_eq!(chat(json!([{"role": "system", "content": "s"}])).question, "");
    }

    #[test]
    fn token_ids_are_counted_and_texts_estimated() {
        let of = |prompt: Value| {
            let body = json!({"model": "m", "prompt": prompt}).to_string();
            PromptFacts::of_completion(CompletionRequest::from_slice(body.as_bytes()).expect("a request"))
        };
        assert_eq!(of(json!([1, 2, 3])).tokens, 3);
        assert_eq!((of(json!("12345")).tokens, of(json!("12345")).question.as_str()), (2, "12345"));
        assert_eq!(of(json!(["ab", "cd"])).question, "ab\ncd");
    }

    #[test]
    fn other_apis_have_their_questions_too() {
        let body = json!({"model": "m", "query": "q1", "documents": ["abcd", "ef"]}).to_string();
        let facts = PromptFacts::of_rerank(RerankRequest::from_slice(body.as_bytes()).expect("a request"));
        assert_eq!((facts.question.as_str(), facts.tokens), ("q1", 3));
        let body = json!({"model": "m", "input": "text", "user": "ada"}).to_string();
        let facts =
            PromptFacts::of_embedding(EmbeddingRequest::from_slice(body.as_bytes()).expect("a request"));
        assert_eq!((facts.question.as_str(), facts.tokens, facts.user.as_deref()), ("text", 1, Some("ada")));
    }

    #[test]
    fn of_a_very_long_question_the_end_is_kept() {
        let text = format!("é{}end", "x".repeat(LONGEST - 4));
        assert_eq!(end_of(text.clone()), text[2..].to_owned(), "whole characters");
        assert!(end_of("y".repeat(3 << 20)).len() == LONGEST);
    }
}
