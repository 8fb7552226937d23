//! Questions about documents, by hand what a RagPipeline will do: the embedding model finds passages, the small model answers from them.

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    Gateway, SERVED, apply, await_ready, chat, eventually, example, in_namespace, model_deployment,
    model_image, model_route,
};

/// How many passages a question is asked with.
const RETRIEVED: usize = 3;
const DOCUMENTS: [&str; 6] = [
    "The shop is open from 9:00 to 18:00.",
    "Parking costs 2 euros an hour.",
    "The manager of the shop is Anna Weber.",
    "The museum is closed on Mondays.",
    "A ticket for the museum costs 7 euros.",
    "The library is on the second floor.",
];
/// Questions and the documents that answer them.
const QUESTIONS: [(&str, usize); 5] = [
    ("When is the shop open?", 0),
    ("Who is the manager of the shop?", 2),
    ("How much is a ticket for the museum?", 4),
    ("When is the museum closed?", 3),
    ("Where is the library?", 5),
];

#[tokio::test]
async fn passages_are_found_by_meaning_and_answers_quote_them() -> Result<()> {
    in_namespace(async |namespace| {
        let (answers, embeddings) = (format!("answers-{namespace}"), format!("embeddings-{namespace}"));
        apply(&namespace, &model_deployment("tiny", &model_image())).await?;
        apply(&namespace, &model_route("tiny", &answers, &[("tiny", 1)])).await?;
        apply(&namespace, &example("retrieval/modeldeployment.yaml")?).await?;
        let mut route = example("retrieval/modelroute.yaml")?;
        route["spec"]["model"] = json!(embeddings);
        apply(&namespace, &route).await?;
        for name in ["tiny", "embeddings"] {
            await_ready(&namespace, "modelroute", name, SERVED).await?;
        }
        let gateway = Gateway::open().await?;
        gateway.await_answer(&answers, SERVED).await?;

        let documents = DOCUMENTS.map(Value::from);
        let vectors = embed(&gateway, &embeddings, &documents).await?;
        for (question, right) in QUESTIONS {
            let asked = embed(&gateway, &embeddings, &[Value::from(question)]).await?;
            let found = nearest(&asked[0], &vectors);
            let passages: Vec<&str> = found.iter().map(|at| DOCUMENTS[*at]).collect();
            let place = found.iter().position(|at| *at == right);
            let place = place.with_context(|| format!("{question:?} finds {passages:?}"))?;
            let answer = ask(&gateway, &answers, question, &passages).await?;
            ensure!(
                answer == format!("[{}] {}", place + 1, DOCUMENTS[right]),
                "{question:?} {passages:?}: {answer:?}"
            );
        }
        Ok(())
    })
    .await
}

async fn embed(gateway: &Gateway, model: &str, texts: &[Value]) -> Result<Vec<Vec<f64>>> {
    let body = json!({"model": model, "input": texts});
    let answer = eventually(SERVED, async || {
        let (status, _, answer) = gateway.post("/v1/embeddings", &body).await?;
        ensure!(status == StatusCode::OK, "{model} answered {status}: {answer}");
        Ok(answer)
    })
    .await?;
    let rows = answer["data"].as_array().context("no embeddings")?;
    rows.iter().map(|row| Ok(serde_json::from_value(row["embedding"].clone())?)).collect()
}

/// The documents most like the question, the best first. The vectors have length 1.
fn nearest(question: &[f64], documents: &[Vec<f64>]) -> Vec<usize> {
    let likeness = |at: usize| -> f64 { question.iter().zip(&documents[at]).map(|(a, b)| a * b).sum() };
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by(|a, b| likeness(*b).total_cmp(&likeness(*a)));
    order.truncate(RETRIEVED);
    order
}

async fn ask(gateway: &Gateway, model: &str, question: &str, passages: &[&str]) -> Result<String> {
    let mut lines = vec![format!("Question: {question}")];
    lines.extend(passages.iter().zip(1..).map(|(text, number)| format!("[{number}] {text}")));
    let mut body = chat(model, 96);
    body["messages"][0]["content"] = json!(lines.join("\n"));
    let (status, _, answer) = gateway.post("/v1/chat/completions", &body).await?;
    ensure!(status == StatusCode::OK, "{status}: {answer}");
    Ok(answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned())
}
