//! `GET /v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use fairlead_openai::{Model, ModelList};

use crate::http::errors::HttpError;
use crate::state::App;

/// The names this pod answers to.
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList::new(app.served_names.iter().map(|name| named(&app, name)).collect()))
}

/// One of them.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Model>, HttpError> {
    app.check_model(&name)?;
    Ok(Json(named(&app, &name)))
}

fn named(app: &App, name: &str) -> Model {
    let max_model_len = app.model().map(|model| model.engine.max_model_len());
    Model { max_model_len, ..Model::new(name, app.created) }
}
