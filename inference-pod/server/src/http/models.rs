//! `GET /v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fairlead_openai::{Model, ModelList};

use crate::state::App;

/// The names this pod answers to.
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let max_model_len = app.model().map(|model| model.engine.max_model_len());
    let named = |name: &String| Model { max_model_len, ..Model::new(name.as_str(), app.created) };
    Json(ModelList::new(app.served_names.iter().map(named).collect()))
}
