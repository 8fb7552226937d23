//! `POST /v1/rerank`, also at `/rerank`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use fairlead_inference_config::Task;
use fairlead_openai::embedding::EncodingUsage;
use fairlead_openai::rerank::{RerankAnswer, RerankDocument, RerankRequest, RerankResult};

use crate::http::errors::HttpError;
use crate::http::{answer_id, public_model, timing};
use crate::state::App;

/// Scores documents against a query.
pub async fn rerank(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RerankAnswer>, HttpError> {
    let timing = timing(&headers)?;
    let body = app.bodies.read(body).await?;
    let (model, guard) = app.admit_encoder(Task::Rerank)?;
    let bytes = body.len();
    let read = {
        let (app, model) = (Arc::clone(&app), Arc::clone(&model));
        move || {
            let request = RerankRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            let builder = model.inputs(request.truncation);
            let query = builder.tokenize(&request.query, "query")?;
            let pair = |(index, document): (usize, &String)| {
                builder.pair(&query, document, &format!("documents[{index}]"))
            };
            let inputs = request.documents.iter().enumerate().map(pair).collect::<Result<Vec<_>, _>>()?;
            Ok((request, inputs))
        }
    };
    let (request, inputs) = app.read_request(bytes, timing.deadline, read).await?;
    let encoded = model.encode(&app.metrics, inputs, timing).await?;
    drop(guard);
    let scores: Vec<f32> =
        encoded.numbers.iter().map(|numbers| numbers.first().copied().unwrap_or_default()).collect();
    let model = public_model(&headers, &request.model);
    Ok(Json(RerankAnswer {
        id: answer_id("rerank"),
        model,
        usage: EncodingUsage::new(encoded.tokens),
        results: results(&scores, request),
    }))
}

/// The best first; documents of one score stay in their order.
fn results(scores: &[f32], request: RerankRequest) -> Vec<RerankResult> {
    let RerankRequest { documents, top_n, return_documents, .. } = request;
    let mut ranked: Vec<(usize, f32, String)> = documents
        .into_iter()
        .enumerate()
        .zip(scores)
        .map(|((index, text), score)| (index, *score, text))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(top_n.map_or(usize::MAX, |most| most as usize));
    let result = |(index, relevance_score, text)| RerankResult {
        index: index as u32,
        relevance_score,
        document: return_documents.then_some(RerankDocument { text }),
    };
    ranked.into_iter().map(result).collect()
}

#[cfg(test)]
mod tests {
    use fairlead_openai::embedding::Truncation;

    use super::*;

    #[test]
    fn the_best_come_first_and_equals_stay_in_order() {
        let request = |top_n, return_documents| RerankRequest {
            model: "m".to_owned(),
            query: "q".to_owned(),
            documents: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
            top_n,
            return_documents,
            truncation: Truncation::Refuse,
        };
        let order = |results: &[RerankResult]| results.iter().map(|result| result.index).collect::<Vec<_>>();
        let all = results(&[0.1, 0.9, 0.9, -2.0], request(None, false));
        assert_eq!(order(&all), [1, 2, 0, 3]);
        assert!(all.iter().all(|result| result.document.is_none()));
        let two = results(&[0.1, 0.9, 0.9, -2.0], request(Some(2), true));
        assert_eq!(order(&two), [1, 2]);
        assert_eq!(two[0].document, Some(RerankDocument { text: "b".to_owned() }));
        assert_eq!(results(&[0.1, 0.9, 0.9, -2.0], request(Some(99), false)).len(), 4);
    }
}
