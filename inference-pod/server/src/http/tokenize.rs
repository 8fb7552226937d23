//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use fairlead_openai::tokenize::TokenizeInput;
use fairlead_openai::{ApiError, DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest};

use crate::http::chat::prompt_tokens;
use crate::http::errors::HttpError;
use crate::http::read_body;
use crate::state::App;

/// Text or a conversation to tokens.
pub async fn tokenize(State(app): State<Arc<App>>, body: Body) -> Result<Json<TokenizeAnswer>, HttpError> {
    let body = read_body(body).await?;
    let (model, _guard) = app.admit()?;
    let bytes = body.len();
    let read = {
        let app = Arc::clone(&app);
        move || {
            let request = TokenizeRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            if let Some(error) = request.unsupported() {
                return Err(error);
            }
            let tokens = match &request.input {
                TokenizeInput::Text { prompt, add_special_tokens } => {
                    model.encode(prompt, *add_special_tokens, "prompt")?
                }
                TokenizeInput::Chat { prompt, add_special_tokens } => {
                    prompt_tokens(&model, prompt, *add_special_tokens)?
                }
            };
            let token_strs = request
                .return_token_strs
                .then(|| tokens.iter().map(|token| model.codec.token_name(*token)).collect());
            Ok(TokenizeAnswer {
                count: tokens.len(),
                max_model_len: model.engine.max_model_len(),
                tokens,
                token_strs,
            })
        }
    };
    Ok(Json(app.read_request(bytes, read).await?))
}

/// Tokens to text.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    body: Body,
) -> Result<Json<DetokenizeAnswer>, HttpError> {
    let body = read_body(body).await?;
    let (model, _guard) = app.admit()?;
    let bytes = body.len();
    let read = {
        let app = Arc::clone(&app);
        move || {
            let request = DetokenizeRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            model.check_tokens("tokens", &request.tokens)?;
            let prompt = model
                .codec
                .decode_with(&request.tokens, true)
                .map_err(|error| ApiError::internal(error.to_string()))?;
            Ok(DetokenizeAnswer { prompt })
        }
    };
    Ok(Json(app.read_request(bytes, read).await?))
}
