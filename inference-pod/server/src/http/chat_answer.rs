//! `POST /v1/chat/completions`: the answer, whole or in a stream, its calls of tools found in the text.

use std::sync::Arc;

use async_stream::stream;
use axum::response::Response;
use bytes::Bytes;
use fairlead_openai::chat::{
    AssistantMessage, ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatTokenLogprob, ChatTopLogprob,
};
use fairlead_openai::tools::{FunctionCall, FunctionCallDelta, ToolCallDelta};
use fairlead_openai::{
    ApiError, ChatCompletion, ChatCompletionChunk, FinishReason, GenerationOptions, ToolCall, Usage,
};

use crate::drain::InFlight;
use crate::generation::{Generation, Output, Piece, ScoredToken};
use crate::http::continuation::Telling;
use crate::http::request_id::StreamedRequest;
use crate::http::{sse_done, sse_error, sse_event, sse_response};
use crate::tokenizer::TextCodec;
use crate::tool_calls::{ToolEvent, ToolParser, ToolSyntax};
use crate::traces::RequestSpan;

/// How calls of tools are read.
pub struct Tools {
    /// How the model writes them.
    pub syntax: ToolSyntax,
    /// Functions there are.
    pub names: Vec<String>,
    /// Whether there may be several.
    pub parallel: bool,
}

/// What is the same in all parts of an answer.
pub struct Answer {
    /// Tells what the request came to.
    pub span: RequestSpan,
    /// Tells of a stream that breaks off.
    pub request: StreamedRequest,
    /// Name of the answer.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model's public name.
    pub model: String,
    /// Whether log-probabilities are reported.
    pub logprobs: bool,
    /// For the texts of tokens.
    pub codec: Arc<TextCodec>,
    /// The prompt's tokens, where they are reported.
    pub prompt_token_ids: Option<Vec<u32>>,
    /// How calls of tools are read, where there are tools.
    pub tools: Option<Tools>,
    /// How a gateway wants it told.
    pub telling: Telling,
    /// Whether the client wants the answer's tokens.
    pub shows_ids: bool,
}

impl Answer {
    /// All of it at once.
    ///
    /// # Errors
    /// What the engine could not do.
    pub async fn whole(
        mut self,
        mut generation: Generation,
        options: &GenerationOptions,
    ) -> Result<ChatCompletion, ApiError> {
        let mut parsers = self.parsers(&generation, options);
        let mut choices: Vec<Whole> = parsers.iter().map(|_| Whole::default()).collect();
        while let Some(output) = generation.next().await {
            let Output::Piece(piece) = output.inspect_err(|error| self.span.failed(error))? else { continue };
            let index = piece.choice as usize;
            if let (Some(choice), Some(parser)) = (choices.get_mut(index), parsers.get_mut(index)) {
                choice.add(parser.read(piece));
            }
        }
        choices.iter().for_each(|choice| self.span.finished(choice.finish.unwrap_or(FinishReason::Stop)));
        self.done(&generation);
        let choices = (0..).zip(choices).map(|(index, choice)| {
            let logprobs = self.logprobs(&choice.tokens);
            let token_ids = self.shows_ids.then_some(choice.token_ids);
            let content = (choice.calls.is_empty() || !choice.content.is_empty()).then_some(choice.content);
            let message = AssistantMessage {
                role: "assistant".to_owned(),
                content,
                refusal: None,
                tool_calls: choice.calls,
            };
            let finish_reason = choice.finish.unwrap_or(FinishReason::Stop);
            ChatChoice { index, message, logprobs, finish_reason, token_ids }
        });
        Ok(ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices: choices.collect(),
            usage: generation.usage(),
            prompt_token_ids: self.prompt_token_ids.clone(),
        })
    }

    /// Piece by piece. Begins with the first output: until then an error still has its status, and a gateway can still ask
    /// another pod.
    ///
    /// # Errors
    /// What the engine could not do before the first output.
    pub async fn stream(
        mut self,
        mut generation: Generation,
        options: &GenerationOptions,
        guard: InFlight,
    ) -> Result<Response, ApiError> {
        let GenerationOptions { include_usage, continuous_usage, .. } = *options;
        let shows_ids = self.shows_ids;
        let telling = self.telling.clone();
        // Whoever resumes an answer has its beginning.
        let is_resumed = !options.resume_token_ids.is_empty() || telling.continues.is_some();
        let mut parsers = self.parsers(&generation, options);
        let first = generation.next().await.transpose();
        let mut next = first.inspect_err(|error| self.span.failed(error))?.map(Ok);
        let mut notes = telling.notes(&self.id, self.created, generation.prompt_tokens());
        Ok(telling.mark(sse_response(stream! {
            let _guard = guard;
            let usage = |generation: &Generation| {
                include_usage.then(|| continuous_usage.then(|| generation.usage()))
            };
            for index in 0..if is_resumed { 0 } else { parsers.len() as u32 } {
                let mut chunk = self.chunk(index, ChatDelta::beginning(), usage(&generation));
                chunk.prompt_token_ids = self.prompt_token_ids.clone().filter(|_| index == 0);
                yield Ok(notes.before(sse_event(&chunk)));
            }
            while let Some(output) = next {
                match output {
                    Ok(Output::Piece(piece)) => {
                        let index = piece.choice;
                        let read = parsers.get_mut(index as usize).map(|parser| parser.read(piece));
                        if let Some(part) = &read {
                            notes.tokens(index, &part.token_ids, part.finish.is_some());
                        }
                        if let Some(part) = read.filter(|part| !part.is_empty(shows_ids)) {
                            let Part { content, calls, tokens, token_ids, finish } = part;
                            finish.into_iter().for_each(|reason| self.span.finished(reason));
                            let delta = ChatDelta { role: None, content, tool_calls: calls };
                            let mut chunk = self.chunk(index, delta, usage(&generation));
                            if let Some(choice) = chunk.choices.first_mut() {
                                choice.logprobs = self.logprobs(&tokens);
                                choice.finish_reason = finish;
                                choice.token_ids = shows_ids.then_some(token_ids);
                            }
                            yield Ok(notes.before(sse_event(&chunk)));
                        } else if let Some(alone) = notes.alone() {
                            yield Ok(alone);
                        }
                    }
                    Ok(Output::Prompt(_)) => {}
                    Err(error) => {
                        self.span.failed(&error);
                        self.request.broke_off(&error);
                        yield Ok(sse_error(&error));
                    }
                }
                next = generation.next().await;
            }
            self.done(&generation);
            if include_usage {
                yield Ok(self.last(&generation));
            }
            yield Ok(sse_done());
        })))
    }

    fn done(&mut self, generation: &Generation) {
        let (read, written) = (generation.prompt_tokens(), generation.generated());
        self.span.done(&self.id, read, written, generation.time_to_first_token());
    }

    fn parsers(&self, generation: &Generation, options: &GenerationOptions) -> Vec<ChoiceParser> {
        let parser = || {
            let tools = self.tools.as_ref()?;
            let mut parser = ToolParser::new(tools.syntax, tools.names.clone(), tools.parallel);
            parser.push(generation.resumed_text());
            Some(parser)
        };
        (0..options.n.max(1)).map(|_| ChoiceParser { parser: parser() }).collect()
    }

    fn chunk(&self, index: u32, delta: ChatDelta, usage: Option<Option<Usage>>) -> ChatCompletionChunk {
        let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: None, token_ids: None };
        ChatCompletionChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices: vec![choice],
            usage,
            prompt_token_ids: None,
        }
    }

    /// The chunk that carries the usage and nothing else.
    fn last(&self, generation: &Generation) -> Bytes {
        let chunk = self.chunk(0, ChatDelta::default(), Some(Some(generation.usage())));
        sse_event(&ChatCompletionChunk { choices: Vec::new(), ..chunk })
    }

    fn logprobs(&self, tokens: &[ScoredToken]) -> Option<ChatLogprobs> {
        if !self.logprobs {
            return None;
        }
        let content = tokens
            .iter()
            .map(|scored| ChatTokenLogprob {
                token: self.codec.token_text(scored.token),
                logprob: scored.logprob.unwrap_or_default(),
                bytes: Some(self.codec.token_bytes(scored.token)),
                top_logprobs: scored
                    .top
                    .iter()
                    .map(|top| ChatTopLogprob {
                        token: self.codec.token_text(top.token),
                        logprob: top.logprob,
                        bytes: Some(self.codec.token_bytes(top.token)),
                    })
                    .collect(),
            })
            .collect();
        Some(ChatLogprobs { content, refusal: None })
    }
}

/// Reads calls of tools in one answer.
struct ChoiceParser {
    parser: Option<ToolParser>,
}

/// A piece, read.
struct Part {
    content: Option<String>,
    calls: Vec<ToolCallDelta>,
    tokens: Vec<ScoredToken>,
    token_ids: Vec<u32>,
    finish: Option<FinishReason>,
}

impl Part {
    fn is_empty(&self, shows_ids: bool) -> bool {
        self.content.is_none()
            && self.calls.is_empty()
            && self.tokens.is_empty()
            && (!shows_ids || self.token_ids.is_empty())
            && self.finish.is_none()
    }
}

impl ChoiceParser {
    fn read(&mut self, piece: Piece) -> Part {
        let Piece { text, tokens, token_ids, mut finish, .. } = piece;
        let Some(parser) = &mut self.parser else {
            let content = (!text.is_empty()).then_some(text);
            return Part { content, calls: Vec::new(), tokens, token_ids, finish };
        };
        let mut events = parser.push(&text);
        if finish.is_some() {
            events.extend(parser.finish());
        }
        if finish == Some(FinishReason::Stop) && parser.has_calls() {
            finish = Some(FinishReason::ToolCalls);
        }
        let (mut content, mut calls) = (String::new(), Vec::<ToolCallDelta>::new());
        for event in events {
            match event {
                ToolEvent::Text(text) => content.push_str(&text),
                ToolEvent::Begin { index, name } => calls.push(ToolCallDelta {
                    index,
                    id: Some(call_id()),
                    kind: Some("function".to_owned()),
                    function: FunctionCallDelta { name: Some(name), arguments: Some(String::new()) },
                }),
                ToolEvent::Arguments { index, text } => match calls.last_mut() {
                    Some(last) if last.index == index => {
                        last.function.arguments.get_or_insert_default().push_str(&text);
                    }
                    _ => calls.push(ToolCallDelta {
                        index,
                        function: FunctionCallDelta { name: None, arguments: Some(text) },
                        ..ToolCallDelta::default()
                    }),
                },
            }
        }
        Part { content: (!content.is_empty()).then_some(content), calls, tokens, token_ids, finish }
    }
}

/// A name for a call.
fn call_id() -> String {
    format!("call_{}", uuid::Uuid::new_v4().simple())
}

/// An answer that is gathered.
#[derive(Default)]
struct Whole {
    content: String,
    calls: Vec<ToolCall>,
    tokens: Vec<ScoredToken>,
    token_ids: Vec<u32>,
    finish: Option<FinishReason>,
}

impl Whole {
    fn add(&mut self, part: Part) {
        self.content.push_str(&part.content.unwrap_or_default());
        for delta in part.calls {
            let FunctionCallDelta { name, arguments } = delta.function;
            let arguments = arguments.unwrap_or_default();
            match self.calls.get_mut(delta.index as usize) {
                Some(call) => call.function.arguments.push_str(&arguments),
                None => self.calls.push(ToolCall {
                    id: delta.id.unwrap_or_default(),
                    kind: "function".to_owned(),
                    function: FunctionCall { name: name.unwrap_or_default(), arguments },
                }),
            }
        }
        self.tokens.extend(part.tokens);
        self.token_ids.extend(part.token_ids);
        self.finish = part.finish.or(self.finish);
    }
}
