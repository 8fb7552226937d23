//! Asks all questions, some at a time, and grades what comes back.

use fairlead_evaluation::grade::Reply;
use fairlead_evaluation::{Item, Question, Rules, grade};
use futures::StreamExt;

use super::ask::{Answer, Asked, Asker};
use super::progress::Progress;
use crate::failure::Failure;

/// When so many questions in a row got nothing because of the server, and none before them got an answer, nobody is there.
const NOBODY_AFTER: usize = 8;

/// Asks all questions; the items are in the questions' order.
///
/// # Errors
/// [`Failure::Wrong`] when every question would end as one did; [`Failure::Again`] when nobody answers.
pub async fn run(
    questions: &[Question],
    asker: &Asker,
    rules: &Rules,
    concurrency: usize,
) -> Result<Vec<Item>, Failure> {
    let mut progress = Progress::new(questions.len());
    let mut items = Vec::with_capacity(questions.len());
    let mut answered = false;
    let mut in_vain = 0;
    let mut asking = futures::stream::iter(questions.iter().enumerate())
        .map(|(index, question)| async move { (index, question, asker.ask(&question.messages).await) })
        .buffer_unordered(concurrency);
    while let Some((index, question, (asked, attempts))) = asking.next().await {
        let item = match asked {
            Asked::Hopeless(error) => return Err(Failure::Wrong(error)),
            Asked::Unanswered { error, busy } => {
                in_vain += usize::from(busy);
                if !answered && in_vain >= NOBODY_AFTER.min(questions.len()) {
                    return Err(Failure::Again(format!(
                        "nobody answers: {in_vain} questions in a row got nothing; the last one: {error}"
                    )));
                }
                Item {
                    id: question.id.clone(),
                    tags: question.tags.clone(),
                    error: Some(error),
                    grade: grade(question, Reply::Nothing, rules),
                    attempts,
                    ..Item::default()
                }
            }
            Asked::Answered(answer) => {
                answered = true;
                graded(question, answer, attempts, rules)
            }
        };
        progress.one_more(item.error.is_some());
        items.push((index, item));
    }
    progress.finish();
    items.sort_by_key(|(index, _)| *index);
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

fn graded(question: &Question, answer: Answer, attempts: u32, rules: &Rules) -> Item {
    let Answer { text, refused, finish_reason, prompt_tokens, completion_tokens, revision, seconds } = answer;
    let reply = match &text {
        _ if refused => Reply::Refused,
        Some(text) => Reply::Text(text),
        // Only calls of tools, for example.
        None => Reply::Text(""),
    };
    Item {
        id: question.id.clone(),
        tags: question.tags.clone(),
        grade: grade(question, reply, rules),
        answer: Some(text.unwrap_or_default()),
        error: None,
        // Milliseconds are as fine as it gets over a network.
        seconds: Some((seconds * 1000.0).round() / 1000.0),
        attempts,
        finish_reason,
        prompt_tokens,
        completion_tokens,
        revision,
    }
}
