//! The admin API: LoRA adapters are loaded and unloaded here, under vLLM's names, on a port of its own.
//!
//! Whoever reaches it names folders of this machine to read, so clients must not; the public port knows none of its paths.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fairlead_engine::backend::AdapterError;
use fairlead_model::Reason;
use fairlead_openai::ApiError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::adapters::AdapterFailure;
use crate::http::errors::{self, HttpError};
use crate::state::App;

/// The environment variable with the token that callers must send, where there is one.
pub const TOKEN_VARIABLE: &str = "FAIRLEAD_ADMIN_TOKEN";

/// All routes of the admin port. With a token, each wants it as `Authorization: Bearer …`.
pub fn admin_router(app: Arc<App>, token: Option<&str>) -> Router {
    let routes = Router::new()
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .route("/v1/lora_adapters", get(list))
        .fallback(errors::not_found_for_admins)
        .method_not_allowed_fallback(errors::method_not_allowed);
    let routes = match token {
        Some(token) => routes.layer(from_fn_with_state(digest(token.as_bytes()), authorise)),
        None => routes,
    };
    routes.with_state(app)
}

#[derive(Deserialize)]
struct LoadRequest {
    #[serde(default)]
    lora_name: String,
    #[serde(default)]
    lora_path: String,
}

#[derive(Deserialize)]
struct UnloadRequest {
    #[serde(default)]
    lora_name: String,
}

async fn load(State(app): State<Arc<App>>, body: Body) -> Result<String, HttpError> {
    let LoadRequest { lora_name, lora_path } = parse(&app, body).await?;
    if lora_name.is_empty() || lora_path.is_empty() {
        return Err(invalid("Both 'lora_name' and 'lora_path' must be provided.").into());
    }
    let (model, guard) = app.admit()?;
    let name = lora_name.clone();
    // Goes on where the client does not wait for it: between the engine's answer and its being read an adapter belongs to nobody.
    let loading = tokio::spawn(async move {
        let _guard = guard;
        app.adapters.load(&model.engine, &lora_name, &lora_path).await.map_err(|error| api_error(&error))
    });
    loading.await.map_err(|error| ApiError::internal(format!("loading the adapter failed: {error}")))??;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Answers when the memory is free again.
async fn unload(State(app): State<Arc<App>>, body: Body) -> Result<String, HttpError> {
    let UnloadRequest { lora_name } = parse(&app, body).await?;
    if lora_name.is_empty() {
        return Err(invalid("'lora_name' needs to be provided to unload a LoRA adapter.").into());
    }
    let (model, _guard) = app.admit()?;
    app.adapters.unload(&model.engine, &lora_name).await.map_err(|error| api_error(&error))?;
    Ok(format!("Success: LoRA adapter '{lora_name}' removed successfully."))
}

async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let one = |(name, adapter): (String, crate::adapters::ServedAdapter)| json!({"lora_name": name, "lora_path": adapter.source, "rank": adapter.info.rank, "bytes": adapter.info.bytes});
    let max = app.max_adapters();
    Json(json!({"max_loras": max, "data": app.adapters.all().into_iter().map(one).collect::<Vec<_>>()}))
}

async fn parse<T: DeserializeOwned>(app: &App, body: Body) -> Result<T, ApiError> {
    let body = app.bodies.read(body).await?;
    serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request(format!("the request body is not what this path takes: {error}; correct it"))
    })
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "InvalidUserInput", message)
}

/// With the kinds that vLLM gives them.
fn api_error(failure: &AdapterFailure) -> ApiError {
    let message = failure.to_string();
    match failure {
        AdapterFailure::Name(_) | AdapterFailure::Loaded(_) => invalid(message),
        AdapterFailure::Unknown(_) | AdapterFailure::Adapter(AdapterError::NotFound(_)) => {
            ApiError::new(404, "NotFoundError", message)
        }
        AdapterFailure::Fetch(error) if error.0 == Reason::ModelNotFound => {
            ApiError::new(404, "NotFoundError", message)
        }
        AdapterFailure::Adapter(AdapterError::Dead(reason)) => crate::state::engine_dead(reason),
        AdapterFailure::Adapter(_) | AdapterFailure::Fetch(_) => {
            ApiError::new(400, "BadRequestError", message)
        }
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Compares digests: how long that takes says nothing about the token.
async fn authorise(State(expected): State<[u8; 32]>, request: Request, next: Next) -> Response {
    let given =
        request.headers().get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|token| digest(token) == expected) {
        return next.run(request).await;
    }
    let message = format!("send the token of {TOKEN_VARIABLE} as Authorization: Bearer …");
    let error = ApiError::new(StatusCode::UNAUTHORIZED.as_u16(), "authentication_error", message);
    HttpError::from(error).into_response()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use axum::http::Method;
    use tower::ServiceExt;

    use super::*;

    async fn ask(token: Option<&str>, authorization: Option<&str>) -> u16 {
        let app = App::new(
            vec!["tiny".to_owned()],
            None,
            PathBuf::new(),
            fairlead_inference_config::Task::Generate,
        );
        let mut request = Request::builder().method(Method::GET).uri("/v1/lora_adapters");
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Body::empty()).unwrap();
        admin_router(app, token).oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn a_token_is_asked_for_where_there_is_one() {
        assert_eq!(ask(None, None).await, 200);
        assert_eq!(ask(Some("secret"), None).await, 401);
        assert_eq!(ask(Some("secret"), Some("Bearer other")).await, 401);
        assert_eq!(ask(Some("secret"), Some("secret")).await, 401);
        assert_eq!(ask(Some("secret"), Some("Bearer secret")).await, 200);
    }
}
