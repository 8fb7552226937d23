//! The engine's thread: requests in, events out, aborts, failures and the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_engine::backend::BackendError;
use fairlead_engine::engine::{
    EngineHandle, EngineOptions, EngineParts, Event, Failure, Load, Observer, StartError, StepReport,
    SubmitError, start,
};
use fairlead_engine::proposer::Proposer;
use fairlead_engine::sampling::{SamplingOptions, TokenMask};
use fairlead_engine::scheduler::Refusal;
use fairlead_engine::sequence::{Constraint, GenerationRequest, GivenUp};
use fairlead_engine::tiers::TierOptions;
use fake::{FakeBackend, next_token};
use tokio::sync::{mpsc::Receiver, watch};
use tokio::time::timeout;

const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 4,
    max_batched_tokens: 16,
    max_logits_rows: 16,
    max_model_len: 200,
    prefix_sharing: true,
    max_queued: 8,
    max_adapters: 0,
    tiers: TierOptions { host_bytes: None, disk: None, transit_bytes: 0 },
};

fn request(prompt: Vec<u32>, max_new_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        prompt,
        max_new_tokens,
        sampling: SamplingOptions { temperature: 0.0, seed: 3, ..SamplingOptions::default() },
        ..GenerationRequest::default()
    }
}

fn expected(prompt: &[u32], count: u64) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for draw in 0..count {
        tokens.push(next_token(&tokens, 3, draw));
    }
    tokens.split_off(prompt.len())
}

struct Watcher {
    load: watch::Sender<Load>,
    steps: Arc<Mutex<Vec<StepReport>>>,
}

impl Observer for Watcher {
    fn load(&self, load: Load) {
        self.load.send_replace(load);
    }

    fn step(&self, report: StepReport) {
        self.steps.lock().unwrap().push(report);
    }
}

async fn run(backend: FakeBackend, options: EngineOptions) -> (EngineHandle, watch::Receiver<Load>) {
    let (load, watched) = watch::channel(Load::default());
    let observer = Box::new(Watcher { load, steps: Arc::default() });
    (start(observer, move || Ok::<_, String>(EngineParts::new(backend, options))).await.unwrap(), watched)
}

async fn read(mut events: Receiver<Event>) -> (Vec<u32>, Option<Failure>) {
    let mut tokens = Vec::new();
    let deadline = Duration::from_secs(20);
    while let Some(event) = timeout(deadline, events.recv()).await.expect("no event in time") {
        match event {
            Event::Token { token, .. } => tokens.push(token.token),
            Event::Failed(failure) => return (tokens, Some(failure)),
            Event::Admitted { .. } | Event::Ended { .. } | Event::PromptLogprobs(_) => {}
        }
    }
    (tokens, None)
}

/// Holds every step back until the returned gate is dropped.
fn close_gate(backend: &mut FakeBackend) -> std::sync::mpsc::Sender<()> {
    let (gate, closed) = std::sync::mpsc::channel();
    backend.failures = Box::new(move |_, _| {
        let _ = closed.recv();
        None
    });
    gate
}

async fn until(watched: &mut watch::Receiver<Load>, what: impl Fn(&Load) -> bool) {
    timeout(Duration::from_secs(20), watched.wait_for(what)).await.expect("not in time").unwrap();
}

#[tokio::test]
async fn many_requests_at_once_get_their_own_answers_and_all_blocks_come_back() {
    let (engine, mut watched) = run(FakeBackend::new(12, 4), OPTIONS).await;
    let prompts: Vec<Vec<u32>> = (1..8).map(|n| vec![n; n as usize]).collect();
    let receivers: Vec<_> = prompts.iter().map(|p| engine.submit(request(p.clone(), 20)).unwrap()).collect();
    for (prompt, events) in prompts.iter().zip(receivers) {
        assert_eq!(read(events).await, (expected(prompt, 20), None));
    }
    until(&mut watched, |load| load.running + load.waiting == 0 && load.used_blocks == 0).await;
}

#[tokio::test]
async fn an_answer_that_another_engine_began_goes_on_as_it_would_have_there() {
    let (engine, _watched) = run(FakeBackend::new(100, 4), OPTIONS).await;
    let whole = expected(&[3, 1], 9);
    for cut in 1..9 {
        let resumed = GenerationRequest { answered: whole[..cut].to_vec(), ..request(vec![3, 1], 9) };
        assert_eq!(read(engine.submit(resumed).unwrap()).await, (whole[cut..].to_vec(), None));
    }
}

#[tokio::test]
async fn several_answers_come_with_their_numbers_and_end_one_by_one() {
    let (engine, mut watched) = run(FakeBackend::new(100, 4), OPTIONS).await;
    let wanted = GenerationRequest { choices: 3, ..request(vec![4, 5, 6], 7) };
    let mut events = engine.submit(wanted).unwrap();
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); 3];
    let mut ends = 0;
    while let Some(event) = timeout(Duration::from_secs(20), events.recv()).await.expect("no event in time") {
        if let Event::Token { choice, token, end } = event {
            answers[choice as usize].push(token.token);
            ends += usize::from(end.is_some());
        }
    }
    assert_eq!(ends, 3);
    for (choice, answer) in answers.into_iter().enumerate() {
        let mut tokens = vec![4, 5, 6];
        for draw in 0..7 {
            tokens.push(next_token(&tokens, 3 + choice as u64, draw));
        }
        assert_eq!(answer, tokens[3..]);
    }
    until(&mut watched, |load| load.running + load.waiting == 0 && load.used_blocks == 0).await;
}

#[tokio::test]
async fn a_prompt_that_was_read_before_is_admitted_with_what_is_cached_of_it() {
    let (engine, _watched) = run(FakeBackend::new(100, 4), OPTIONS).await;
    for cached in [0, 8] {
        let mut events = engine.submit(request(vec![9; 11], 2)).unwrap();
        let first = timeout(Duration::from_secs(20), events.recv()).await.expect("no event in time");
        assert!(matches!(first, Some(Event::Admitted { cached_tokens, .. }) if cached_tokens == cached));
        assert_eq!(read(events).await, (expected(&[9; 11], 2), None));
    }
}

#[tokio::test]
async fn a_step_that_does_not_end_shows_from_outside() {
    let mut backend = FakeBackend::new(100, 4);
    let gate = close_gate(&mut backend);
    let (engine, _watched) = run(backend, OPTIONS).await;
    assert_eq!((engine.step_age(), engine.queued()), (None, 0));
    let events = engine.submit(request(vec![4, 5, 6], 3)).unwrap();
    timeout(Duration::from_secs(20), async {
        while engine.step_age().is_none_or(|age| age.is_zero()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the step shows");
    drop(gate);
    assert_eq!(read(events).await, (expected(&[4, 5, 6], 3), None));
    until_idle(&engine).await;
    assert_eq!(engine.queued(), 0);
}

async fn until_idle(engine: &EngineHandle) {
    timeout(Duration::from_secs(20), async {
        while engine.step_age().is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the step ends");
}

#[tokio::test]
async fn an_answer_that_is_given_up_stops_and_the_others_go_on() {
    let mut backend = FakeBackend::new(100, 4);
    let gate = close_gate(&mut backend);
    let (engine, mut watched) = run(backend, OPTIONS).await;
    let given_up = GivenUp::default();
    let wanted = GenerationRequest { choices: 2, given_up: given_up.clone(), ..request(vec![4, 5, 6], 150) };
    // One step, which reads the prompt; the others wait until the answer has been given up.
    gate.send(()).unwrap();
    let mut gate = Some(gate);
    let mut events = engine.submit(wanted).unwrap();
    let mut tokens = [0, 0];
    let mut ends = Vec::new();
    while let Some(event) = timeout(Duration::from_secs(20), events.recv()).await.expect("no event in time") {
        if let Event::Token { choice, end, .. } = event {
            tokens[choice as usize] += 1;
            ends.extend(end.map(|_| choice));
            given_up.give_up(0);
            gate = None;
        }
    }
    assert!(gate.is_none());
    assert_eq!((ends, tokens[1]), (vec![1], 150));
    assert!(tokens[0] <= 2, "it went on for nobody: {tokens:?}");
    until(&mut watched, |load| load.running + load.waiting == 0 && load.used_blocks == 0).await;
}

/// Allows nothing, and says so or does not.
#[derive(Clone, Debug)]
enum Nothing {
    Says,
    Masks,
}

impl Constraint for Nothing {
    fn mask(&mut self) -> Result<Arc<TokenMask>, String> {
        match self {
            Self::Says => Err("nothing may come".to_owned()),
            Self::Masks => Ok(Arc::new(TokenMask { words: vec![0; 4] })),
        }
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }

    fn valid_prefix(&mut self, _: &[u32]) -> usize {
        0
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[tokio::test]
async fn a_constraint_that_cannot_go_on_fails_its_own_request_only() {
    let (engine, mut watched) = run(FakeBackend::new(100, 4), OPTIONS).await;
    for (nothing, words) in [(Nothing::Says, "nothing may come"), (Nothing::Masks, "no token may come next")]
    {
        let stuck =
            GenerationRequest { constraint: Some(Box::new(nothing)), choices: 2, ..request(vec![1], 5) };
        let stuck = engine.submit(stuck).unwrap();
        let other = engine.submit(request(vec![2], 5)).unwrap();
        assert_eq!(read(stuck).await, (vec![], Some(Failure::Constraint(words.into()))));
        assert_eq!(read(other).await, (expected(&[2], 5), None));
    }
    until(&mut watched, |load| load.running + load.waiting == 0 && load.used_blocks == 0).await;
}

/// Guesses right, and says so.
struct Oracle(Vec<u32>);

impl Proposer for Oracle {
    fn propose(&mut self, _: u64, tokens: &[u32], _: usize) -> Vec<u32> {
        self.0[tokens.len()..].to_vec()
    }
}

#[tokio::test]
async fn a_proposers_guesses_are_checked_and_counted() {
    let mut whole = vec![3];
    whole.extend(expected(&[3], 9));
    let steps = Arc::new(Mutex::new(Vec::new()));
    let observer = Box::new(Watcher { load: watch::channel(Load::default()).0, steps: Arc::clone(&steps) });
    let proposer: Option<Box<dyn Proposer>> = Some(Box::new(Oracle(whole)));
    let parts = EngineParts { proposer, ..EngineParts::new(FakeBackend::new(100, 4), OPTIONS) };
    let engine = start(observer, move || Ok::<_, String>(parts)).await.unwrap();
    assert_eq!(read(engine.submit(request(vec![3], 9)).unwrap()).await, (expected(&[3], 9), None));
    engine.drain().await;
    let accepted =
        || steps.lock().unwrap().iter().map(|step: &StepReport| step.counts.accepted_tokens).sum::<u64>();
    // The report follows the answer.
    let (begun, mut sum) = (std::time::Instant::now(), 0);
    while sum == 0 && begun.elapsed() < Duration::from_secs(20) {
        tokio::task::yield_now().await;
        sum = accepted();
    }
    assert_eq!(sum, 7);
}

#[tokio::test]
async fn dropping_the_receiver_aborts() {
    let mut backend = FakeBackend::new(100, 4);
    let gate = close_gate(&mut backend);
    let (engine, mut watched) = run(backend, OPTIONS).await;
    let events = engine.submit(request(vec![1], 150)).unwrap();
    drop(events);
    drop(gate);
    let other = engine.submit(request(vec![2], 3)).unwrap();
    assert_eq!(read(other).await.0, expected(&[2], 3));
    until(&mut watched, |load| load.running + load.waiting == 0 && load.used_blocks == 0).await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_its_places_come_back() {
    let mut backend = FakeBackend::new(100, 4);
    let gate = close_gate(&mut backend);
    let (engine, mut watched) =
        run(backend, EngineOptions { max_sequences: 1, max_queued: 2, ..OPTIONS }).await;
    let first = engine.submit(request(vec![1], 2)).unwrap();
    // The first leaves the queue when it is admitted, and then waits at the gate.
    until(&mut watched, |load| load.running == 1).await;
    let more: Vec<_> = (0..2).map(|_| engine.submit(request(vec![1], 2)).unwrap()).collect();
    assert!(matches!(engine.submit(request(vec![1], 2)), Err(SubmitError::Full { waiting: 2 })));
    drop(gate);
    for events in std::iter::once(first).chain(more) {
        assert_eq!(read(events).await.0.len(), 2);
    }
    assert!(engine.submit(request(vec![1], 2)).is_ok());
}

#[tokio::test]
async fn what_cannot_run_is_told_so() {
    let (engine, _) = run(FakeBackend::new(100, 4), OPTIONS).await;
    let (_, failure) = read(engine.submit(request(vec![1; 199], 2)).unwrap()).await;
    assert_eq!(failure, Some(Failure::Refused(Refusal::TooLong { prompt: 199, new: 2, most: 200 })));
    let late = GenerationRequest { deadline: Some(std::time::Instant::now()), ..request(vec![1], 2) };
    assert_eq!(read(engine.submit(late).unwrap()).await.1, Some(Failure::DeadlinePassed));
}

#[tokio::test]
async fn a_fatal_error_fails_everyone_and_marks_the_engine_dead() {
    let mut backend = FakeBackend::new(100, 4);
    // The first step waits until all requests are there.
    let (begin, begun) = std::sync::mpsc::channel();
    backend.failures = Box::new(move |step, _| {
        if step == 1 {
            begun.recv().unwrap();
        }
        (step == 5).then(|| BackendError::Fatal("the GPU fell off".into()))
    });
    let (engine, _) = run(backend, OPTIONS).await;
    let receivers: Vec<_> = (0..3).map(|_| engine.submit(request(vec![1], 50)).unwrap()).collect();
    begin.send(()).unwrap();
    for events in receivers {
        assert_eq!(read(events).await.1, Some(Failure::Dead("the GPU fell off".into())));
    }
    assert_eq!(engine.dead(), Some("the GPU fell off"));
    assert!(matches!(engine.submit(request(vec![1], 1)), Err(SubmitError::Dead(_))));
}

#[tokio::test]
async fn a_panic_is_a_fatal_error() {
    let mut backend = FakeBackend::new(100, 4);
    backend.failures = Box::new(|_, _| panic!("index out of range"));
    let (engine, _) = run(backend, OPTIONS).await;
    let (_, failure) = read(engine.submit(request(vec![1], 5)).unwrap()).await;
    assert_eq!(failure, Some(Failure::Dead("it panicked: index out of range".into())));
}

#[tokio::test]
async fn non_finite_logits_fail_their_own_request_only() {
    let mut backend = FakeBackend::new(100, 4);
    backend.failures = Box::new(|_, batch| {
        let broken =
            batch.sequences.iter().filter(|step| step.tokens.contains(&40)).map(|step| step.sequence);
        let broken: Vec<_> = broken.collect();
        (!broken.is_empty()).then_some(BackendError::NonFinite(broken))
    });
    let (engine, _) = run(backend, OPTIONS).await;
    let broken = engine.submit(request(vec![1, 40], 5)).unwrap();
    let whole = engine.submit(request(vec![2], 1)).unwrap();
    assert_eq!(read(broken).await.1, Some(Failure::NonFinite));
    assert_eq!(read(whole).await, (expected(&[2], 1), None));
}

#[tokio::test]
async fn memory_that_runs_out_shrinks_the_batch_and_changes_no_answer() {
    let mut backend = FakeBackend::new(100, 4);
    backend.failures = Box::new(|_, batch| {
        let tokens: usize = batch.sequences.iter().map(|step| step.tokens.len()).sum();
        (tokens > 3 || batch.sequences.len() > 2)
            .then(|| BackendError::OutOfMemory("3 tokens at most".into()))
    });
    let (engine, _) = run(backend, OPTIONS).await;
    let prompts: Vec<Vec<u32>> = (1..5).map(|n| vec![n; 9]).collect();
    let receivers: Vec<_> = prompts.iter().map(|p| engine.submit(request(p.clone(), 6)).unwrap()).collect();
    for (prompt, events) in prompts.iter().zip(receivers) {
        assert_eq!(read(events).await, (expected(prompt, 6), None));
    }
    let mut backend = FakeBackend::new(100, 4);
    backend.failures = Box::new(|_, _| Some(BackendError::OutOfMemory("nothing left".into())));
    let (engine, _) = run(backend, OPTIONS).await;
    assert_eq!(read(engine.submit(request(vec![1; 9], 6)).unwrap()).await.1, Some(Failure::OutOfMemory));
    assert_eq!(engine.dead(), None);
}

#[tokio::test]
async fn draining_finishes_what_there_is() {
    let (engine, _) = run(FakeBackend::new(100, 4), OPTIONS).await;
    let events = engine.submit(request(vec![1], 50)).unwrap();
    engine.drain().await;
    assert_eq!(read(events).await, (expected(&[1], 50), None));
    assert_eq!(engine.dead(), None);
}

#[tokio::test]
async fn a_backend_that_cannot_be_built_says_why() {
    let (load, _) = watch::channel(Load::default());
    let observer = Box::new(Watcher { load: load.clone(), steps: Arc::default() });
    let error = start::<FakeBackend, _, _>(observer, || Err("no such file".to_owned())).await.err().unwrap();
    assert!(matches!(error, StartError::Build(reason) if reason == "no such file"));
    let observer = Box::new(Watcher { load, steps: Arc::default() });
    let error = start::<FakeBackend, String, _>(observer, || panic!("boom")).await.err().unwrap();
    assert!(matches!(error, StartError::Ended(reason) if reason.contains("boom")));
}
