//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes, on pods for every task.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use fairlead_inference_config::Task;
use fairlead_openai::tokenize::TokenizeInput;
use fairlead_openai::{
    ApiError, ChatPrompt, DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest,
};

use crate::drain::InFlight;
use crate::encoding::EncoderModel;
use crate::http::chat::prompt_tokens;
use crate::http::errors::HttpError;
use crate::state::{App, Model};
use crate::tokenizer::TextCodec;

/// Longest text that an encoder's tokenizer is given, in bytes, as for its other APIs.
const MAX_ENCODER_TEXT: usize = 1 << 20;

/// Text or a conversation to tokens.
pub async fn tokenize(State(app): State<Arc<App>>, body: Body) -> Result<Json<TokenizeAnswer>, HttpError> {
    let body = app.bodies.read(body).await?;
    let (model, _guard) = Loaded::admit(&app)?;
    let bytes = body.len();
    let read = {
        let app = Arc::clone(&app);
        move || {
            let request = TokenizeRequest::from_slice_for(&body, only_model(&app))?;
            app.check_model(&request.model)?;
            if let Some(error) = request.unsupported() {
                return Err(error);
            }
            let tokens = match &request.input {
                TokenizeInput::Text { prompt, add_special_tokens } => {
                    model.text(prompt, *add_special_tokens)?
                }
                TokenizeInput::Chat { prompt, add_special_tokens } => {
                    model.chat(prompt, *add_special_tokens)?
                }
            };
            let codec = model.codec();
            let token_strs = request
                .return_token_strs
                .then(|| tokens.iter().map(|token| codec.token_name(*token)).collect());
            let max_model_len = model.longest();
            Ok(TokenizeAnswer { count: tokens.len(), max_model_len, tokens, token_strs })
        }
    };
    Ok(Json(app.read_request(bytes, None, read).await?))
}

/// Tokens to text.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    body: Body,
) -> Result<Json<DetokenizeAnswer>, HttpError> {
    let body = app.bodies.read(body).await?;
    let (model, _guard) = Loaded::admit(&app)?;
    let bytes = body.len();
    let read = {
        let app = Arc::clone(&app);
        move || {
            let request = DetokenizeRequest::from_slice_for(&body, only_model(&app))?;
            app.check_model(&request.model)?;
            let codec = model.codec();
            check_tokens(codec, &request.tokens)?;
            let prompt = codec
                .decode_with(&request.tokens, true)
                .map_err(|error| ApiError::internal(error.to_string()))?;
            Ok(DetokenizeAnswer { prompt })
        }
    };
    Ok(Json(app.read_request(bytes, None, read).await?))
}

/// The model whose tokens are meant where a request names none.
fn only_model(app: &App) -> &str {
    app.served_names.first().map_or("", String::as_str)
}

/// The pod's model, whatever it is for.
enum Loaded {
    Decoder(Arc<Model>),
    Encoder(Arc<EncoderModel>),
}

impl Loaded {
    fn admit(app: &App) -> Result<(Self, InFlight), ApiError> {
        Ok(match app.task {
            Task::Generate => {
                let (model, guard) = app.admit()?;
                (Self::Decoder(model), guard)
            }
            task @ (Task::Embed | Task::Rerank) => {
                let (model, guard) = app.admit_encoder(task)?;
                (Self::Encoder(model), guard)
            }
        })
    }

    fn codec(&self) -> &TextCodec {
        match self {
            Self::Decoder(model) => &model.codec,
            Self::Encoder(model) => &model.codec,
        }
    }

    /// Longest sequence in tokens.
    fn longest(&self) -> u32 {
        match self {
            Self::Decoder(model) => model.engine.max_model_len(),
            Self::Encoder(model) => model.max_input_tokens,
        }
    }

    fn text(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ApiError> {
        match self {
            Self::Decoder(model) => model.encode(text, add_special_tokens, "prompt"),
            Self::Encoder(_) if text.len() > MAX_ENCODER_TEXT => {
                let message = format!(
                    "prompt has {} bytes, at most {MAX_ENCODER_TEXT} are read; send its beginning",
                    text.len()
                );
                Err(ApiError::invalid("prompt", message).with_code("context_length_exceeded"))
            }
            Self::Encoder(model) => model
                .codec
                .encode(text, add_special_tokens)
                .map_err(|error| ApiError::internal(error.to_string())),
        }
    }

    fn chat(&self, prompt: &ChatPrompt, add_special_tokens: bool) -> Result<Vec<u32>, ApiError> {
        match self {
            Self::Decoder(model) => prompt_tokens(model, prompt, add_special_tokens),
            Self::Encoder(_) => Err(ApiError::invalid(
                "messages",
                "messages: this model does not chat; send a text as prompt",
            )
            .with_code("unsupported_task")),
        }
    }
}

fn check_tokens(codec: &TextCodec, tokens: &[u32]) -> Result<(), ApiError> {
    let most = codec.vocab_size().saturating_sub(1);
    match tokens.iter().enumerate().find(|(_, token)| **token > most) {
        None => Ok(()),
        Some((index, token)) => {
            let message = format!(
                "tokens: token {index} is {token}, but this model's tokens are 0 to {most}; send only those"
            );
            Err(ApiError::invalid("tokens", message))
        }
    }
}
