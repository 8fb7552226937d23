//! `evaluate`: asks every question of a set, scores the answers and says how well they are.

mod ask;
mod deliver;
mod progress;
mod run;
mod table;

use fairlead_crds::evaluation::ItemsAt;
use fairlead_evaluation::{Question, Rules, Summary, digest, items, parse, summarize};
use serde_json::json;

use crate::cli::{EvaluateArgs, Output};
use crate::failure::Failure;

/// Asks and tells. Returns what the operator is to be told, when it was started by it.
///
/// # Errors
/// [`Failure::Wrong`] for settings and questions that can't be used, or a server that knows no such model; [`Failure::Again`]
/// when nobody answers or the result could not be written.
pub async fn evaluate(arguments: &EvaluateArgs) -> Result<Option<String>, Failure> {
    let (questions, digest) = questions(arguments)?;
    let asker = ask::Asker::new(arguments)?;
    let rules = Rules::new(arguments.ignored().as_deref(), &arguments.refusals);
    let started = jiff::Timestamp::now();
    let asked = run::run(&questions, &asker, &rules, usize::from(arguments.concurrency)).await?;
    let mut summary = Summary {
        questions: digest,
        started_at: Some(started.to_string()),
        finished_at: Some(jiff::Timestamp::now().to_string()),
        ..summarize(&asked, &arguments.scores)
    };
    if let Some(file) = &arguments.items {
        let text = items::write(&asked, usize::MAX).text;
        std::fs::write(file, text).map_err(|error| {
            Failure::wrong(format!("--items {}: can't be written: {error}", file.display()))
        })?;
    }
    if let Some(name) = &arguments.result_config_map {
        let written = items::write(&asked, deliver::LARGEST);
        deliver::deliver(name, &written.text, &summary).await?;
        summary.items = Some(ItemsAt {
            config_map: name.clone(),
            key: deliver::ITEMS_KEY.to_owned(),
            truncated: written.truncated,
        });
    }
    match arguments.output {
        Output::Table => print!("{}", table::table(&summary)),
        Output::Json => println!("{}", json!({"summary": summary, "items": asked})),
    }
    if arguments.result_config_map.is_none() {
        return Ok(None);
    }
    serde_json::to_string(&summary)
        .map(Some)
        .map_err(|error| Failure::again(format!("the result has no JSON form: {error}")))
}

fn questions(arguments: &EvaluateArgs) -> Result<(Vec<Question>, String), Failure> {
    let file = arguments.questions.display();
    let text = std::fs::read_to_string(&arguments.questions)
        .map_err(|error| Failure::wrong(format!("--questions {file}: can't be read: {error}")))?;
    let digest = digest(&text);
    if let Some(expected) = arguments.expect_digest.as_ref().filter(|expected| **expected != digest) {
        // A node may be a minute behind with a ConfigMap's contents.
        return Err(Failure::again(format!(
            "--questions {file}: their digest is {digest}, not {expected}: they have changed"
        )));
    }
    let mut questions =
        parse(&text).map_err(|error| Failure::wrong(format!("--questions {file}: {error}")))?;
    if let Some(system) = &arguments.system_prompt {
        for question in questions.iter_mut().filter(|question| question.plain) {
            question.messages.insert(0, json!({"role": "system", "content": system}));
        }
    }
    Ok((questions, digest))
}
