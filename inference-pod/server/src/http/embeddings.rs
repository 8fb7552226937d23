//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairlead_inference_config::Task;
use fairlead_model::EncoderConfig;
use fairlead_openai::embedding::{
    Embedding, EmbeddingList, EmbeddingObject, EmbeddingRequest, EncodingFormat, EncodingUsage,
};
use fairlead_openai::{ApiError, Prompt};

use crate::http::errors::HttpError;
use crate::http::{public_model, timing};
use crate::state::App;

/// Turns texts into vectors.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EmbeddingList>, HttpError> {
    let timing = timing(&headers)?;
    let body = app.bodies.read(body).await?;
    let (model, guard) = app.admit_encoder(Task::Embed)?;
    let bytes = body.len();
    let read = {
        let (app, model) = (Arc::clone(&app), Arc::clone(&model));
        move || {
            let request = EmbeddingRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            check_dimensions(&request, &model.config)?;
            let builder = model.inputs(request.truncation);
            let name = |index: usize| match request.inputs.len() {
                1 => "input".to_owned(),
                _ => format!("input[{index}]"),
            };
            let input = |(index, prompt): (usize, &Prompt)| builder.prompt(prompt, &name(index));
            let inputs = request.inputs.iter().enumerate().map(input).collect::<Result<Vec<_>, _>>()?;
            Ok((request, inputs))
        }
    };
    let (request, inputs) = app.read_request(bytes, timing.deadline, read).await?;
    let encoded = model.encode(&app.metrics, inputs, timing).await?;
    drop(guard);
    let normalize = model.config.pipeline.normalize;
    let object = |(index, mut numbers): (usize, Vec<f32>)| {
        if let Some(dimensions) = request.dimensions {
            cut(&mut numbers, dimensions as usize, normalize);
        }
        let embedding = match request.encoding_format {
            EncodingFormat::Float => Embedding::Float(numbers),
            EncodingFormat::Base64 => Embedding::Base64(base64(&numbers)),
        };
        EmbeddingObject { object: "embedding".to_owned(), index: index as u32, embedding }
    };
    Ok(Json(EmbeddingList {
        object: "list".to_owned(),
        data: encoded.numbers.into_iter().enumerate().map(object).collect(),
        model: public_model(&headers, &request.model),
        usage: EncodingUsage::new(encoded.tokens),
    }))
}

/// Fewer numbers make sense only where the model was trained for it.
fn check_dimensions(request: &EmbeddingRequest, config: &EncoderConfig) -> Result<(), ApiError> {
    let Some(dimensions) = request.dimensions.filter(|dimensions| !config.may_cut_to(*dimensions)) else {
        return Ok(());
    };
    let whole = config.hidden_size;
    let message = if !config.matryoshka_dimensions.is_empty() {
        let sizes: Vec<String> = config.matryoshka_dimensions.iter().map(u32::to_string).collect();
        format!(
            "dimensions is {dimensions}, but this model's embeddings may be cut to {} or left at {whole}",
            sizes.join(", ")
        )
    } else if config.any_dimension {
        format!(
            "dimensions is {dimensions}, but this model's embeddings have {whole} numbers; ask for at most that"
        )
    } else {
        format!(
            "dimensions is {dimensions}, but this model's embeddings have {whole} numbers and mean nothing when cut; leave it \
             out"
        )
    };
    Err(ApiError::invalid("dimensions", message))
}

/// The first `dimensions` numbers, of length 1 where the whole was.
fn cut(numbers: &mut Vec<f32>, dimensions: usize, normalize: bool) {
    if dimensions >= numbers.len() {
        return;
    }
    numbers.truncate(dimensions);
    if normalize {
        let squares: f64 = numbers.iter().map(|number| f64::from(*number).powi(2)).sum();
        let length = squares.sqrt().max(1e-12) as f32;
        numbers.iter_mut().for_each(|number| *number /= length);
    }
}

fn base64(numbers: &[f32]) -> String {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_embedding_has_length_one_where_the_whole_had() {
        let mut numbers = vec![0.6, 0.0, 0.8];
        cut(&mut numbers, 2, true);
        assert_eq!(numbers, [1.0, 0.0]);
        let mut raw = vec![3.0, 4.0, 5.0];
        cut(&mut raw, 2, false);
        assert_eq!(raw, [3.0, 4.0]);
        cut(&mut raw, 2, true);
        assert_eq!(raw, [3.0, 4.0], "nothing to cut");
        let mut nothing = vec![0.0, 1.0];
        cut(&mut nothing, 1, true);
        assert_eq!(nothing, [0.0]);
    }

    #[test]
    fn base64_is_of_little_endian_f32() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
