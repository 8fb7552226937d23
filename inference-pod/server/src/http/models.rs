//! `GET /v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use fairlead_openai::{Model, ModelList};

use crate::adapters::ServedAdapter;
use crate::http::errors::HttpError;
use crate::state::App;

/// The names this pod answers to.
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let adapters = app.adapters.all().into_iter().map(|(name, adapter)| derived(&app, &name, adapter));
    Json(ModelList::new(app.served_names.iter().map(|name| named(&app, name)).chain(adapters).collect()))
}

/// One of them.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Model>, HttpError> {
    app.check_model(&name)?;
    Ok(Json(match app.adapters.find(&name) {
        Some(adapter) => derived(&app, &name, adapter),
        None => named(&app, &name),
    }))
}

/// An adapter, with where it comes from and what it belongs to, as vLLM lists it.
fn derived(app: &App, name: &str, adapter: ServedAdapter) -> Model {
    let parent = app.served_names.first().cloned();
    Model { root: Some(adapter.source), parent, ..named(app, name) }
}

fn named(app: &App, name: &str) -> Model {
    let max_model_len = app.max_model_len();
    Model { max_model_len, ..Model::new(name, app.created) }
}
