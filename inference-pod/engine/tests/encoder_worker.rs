//! The encoder's thread: requests in, numbers out, aborts, deadlines, memory that runs out, and the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_engine::backend::BackendError;
use fairlead_engine::encoder::{
    BatchBudget, EncodeRequest, Encoded, Encoder, EncoderHandle, EncoderInput, EncoderOptions, start,
};
use fairlead_engine::engine::{Failure, Load, Observer, StepReport, SubmitError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

const OPTIONS: EncoderOptions =
    EncoderOptions { budget: BatchBudget { tokens: 16, inputs: 8 }, max_queued: 4 };

/// Tokens that make the fake encoder misbehave.
const NOT_FINITE: u32 = 1000;
const PANIC: u32 = 1001;
/// More tokens in a batch than this do not fit the fake memory.
const MEMORY: usize = 12;

type Gate = std::sync::mpsc::Receiver<()>;

/// An input's numbers are its length and its sum. Each batch waits for the gate, where there is one.
struct Fake {
    batches: Arc<Mutex<Vec<usize>>>,
    begun: mpsc::UnboundedSender<()>,
    gate: Option<Gate>,
}

impl Encoder for Fake {
    fn encode(&mut self, inputs: &[&EncoderInput]) -> Result<Vec<Vec<f32>>, BackendError> {
        let _ = self.begun.send(());
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        let tokens: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        if tokens > MEMORY {
            return Err(BackendError::OutOfMemory(format!("{tokens} tokens")));
        }
        assert!(inputs.iter().all(|input| !input.tokens.contains(&PANIC)), "told to");
        self.batches.lock().unwrap().push(inputs.len());
        let numbers = |input: &&EncoderInput| {
            let sum: u32 = input.tokens.iter().sum();
            let first = if input.tokens.contains(&NOT_FINITE) { f32::NAN } else { input.tokens.len() as f32 };
            vec![first, sum as f32]
        };
        Ok(inputs.iter().map(numbers).collect())
    }
}

struct Watcher(mpsc::UnboundedSender<Load>);

impl Observer for Watcher {
    fn load(&self, load: Load) {
        let _ = self.0.send(load);
    }

    fn step(&self, _report: StepReport) {}
}

struct Scene {
    handle: EncoderHandle,
    batches: Arc<Mutex<Vec<usize>>>,
    begun: mpsc::UnboundedReceiver<()>,
    loads: mpsc::UnboundedReceiver<Load>,
}

async fn scene(gate: Option<Gate>) -> Scene {
    let (batches, (begin, begun)) = (Arc::default(), mpsc::unbounded_channel());
    let (load, loads) = mpsc::unbounded_channel();
    let model = Fake { batches: Arc::clone(&batches), begun: begin, gate };
    let handle = start(Box::new(Watcher(load)), move || Ok::<_, String>((model, OPTIONS))).await.unwrap();
    Scene { handle, batches, begun, loads }
}

fn request(inputs: &[&[u32]]) -> EncodeRequest {
    let input = |tokens: &&[u32]| EncoderInput { tokens: tokens.to_vec(), token_types: Vec::new() };
    EncodeRequest { inputs: inputs.iter().map(input).collect(), deadline: None }
}

async fn answer(receiver: oneshot::Receiver<Result<Encoded, Failure>>) -> Result<Encoded, Failure> {
    timeout(Duration::from_secs(20), receiver).await.expect("in time").expect("an answer")
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_inputs() {
    let scene = scene(None).await;
    let texts: Vec<Vec<u32>> = (1..30).map(|length| vec![2; length % 7 + 1]).collect();
    let inputs: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let encoded = answer(scene.handle.submit(request(&inputs)).unwrap()).await.unwrap();
    let expected: Encoded =
        texts.iter().map(|text| vec![text.len() as f32, 2.0 * text.len() as f32]).collect();
    assert_eq!(encoded, expected);
    assert!(scene.batches.lock().unwrap().len() < texts.len(), "several run together");
    assert_eq!(answer(scene.handle.submit(request(&[])).unwrap()).await, Ok(Vec::new()));
}

#[tokio::test]
async fn memory_that_runs_out_makes_batches_smaller_and_fails_only_what_is_too_large_alone() {
    let scene = scene(None).await;
    let fits = scene.handle.submit(request(&[&[1; 8], &[1; 8], &[1; 8]])).unwrap();
    let large = scene.handle.submit(request(&[&[1; 14]])).unwrap();
    assert_eq!(answer(fits).await.unwrap().len(), 3);
    assert_eq!(answer(large).await, Err(Failure::OutOfMemory));
    assert_eq!(answer(scene.handle.submit(request(&[&[3]])).unwrap()).await.unwrap(), [[1.0, 3.0]]);
}

#[tokio::test]
async fn numbers_that_are_not_finite_fail_their_request_and_no_other() {
    let scene = scene(None).await;
    let broken = scene.handle.submit(request(&[&[1], &[NOT_FINITE], &[1]])).unwrap();
    let whole = scene.handle.submit(request(&[&[4]])).unwrap();
    assert_eq!(answer(broken).await, Err(Failure::NonFinite));
    assert_eq!(answer(whole).await.unwrap(), [[1.0, 4.0]]);
}

#[tokio::test]
async fn the_queue_is_bounded_and_who_leaves_makes_room() {
    let (open, gate) = std::sync::mpsc::channel();
    let mut scene = scene(Some(gate)).await;
    let first = scene.handle.submit(request(&[&[1]])).unwrap();
    scene.begun.recv().await.unwrap();
    // One place is the first's until it has run; a request of more inputs than are left is taken as long as any is.
    let second = scene.handle.submit(request(&[&[2], &[2], &[2], &[2]])).unwrap();
    assert!(matches!(scene.handle.submit(request(&[&[3]])), Err(SubmitError::Full { waiting: 5 })));
    drop(second);
    open.send(()).unwrap();
    assert_eq!(answer(first).await.unwrap(), [[1.0, 1.0]]);
    drop(open);
    let third = loop {
        match scene.handle.submit(request(&[&[3]])) {
            Ok(third) => break third,
            // Something has changed whenever the thread says so.
            Err(_) => drop(timeout(Duration::from_secs(20), scene.loads.recv()).await.expect("it goes on")),
        }
    };
    assert_eq!(answer(third).await.unwrap(), [[1.0, 3.0]]);
    assert_eq!(*scene.batches.lock().unwrap(), [1, 1], "what nobody waits for does not run");
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_told() {
    let scene = scene(None).await;
    let late = EncodeRequest { deadline: Some(Instant::now()), ..request(&[&[1]]) };
    assert_eq!(answer(scene.handle.submit(late).unwrap()).await, Err(Failure::DeadlinePassed));
}

#[tokio::test]
async fn a_batch_that_does_not_end_shows_from_outside() {
    let (open, gate) = std::sync::mpsc::channel();
    let mut scene = scene(Some(gate)).await;
    assert_eq!(scene.handle.step_age(), None);
    let receiver = scene.handle.submit(request(&[&[1]])).unwrap();
    scene.begun.recv().await.unwrap();
    timeout(Duration::from_secs(20), async {
        while scene.handle.step_age().is_none_or(|age| age.is_zero()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the batch shows");
    open.send(()).unwrap();
    assert_eq!(answer(receiver).await.unwrap(), [[1.0, 1.0]]);
    assert_eq!(scene.handle.step_age(), None);
}

#[tokio::test]
async fn a_drain_finishes_what_waits() {
    let scene = scene(None).await;
    let waiting: Vec<_> = (0..3).map(|_| scene.handle.submit(request(&[&[5; 9]])).unwrap()).collect();
    timeout(Duration::from_secs(20), scene.handle.drain()).await.expect("ends");
    for receiver in waiting {
        assert_eq!(answer(receiver).await.unwrap(), [[9.0, 45.0]]);
    }
    assert!(matches!(scene.handle.submit(request(&[&[1]])), Err(SubmitError::Dead(_))));
    assert_eq!(scene.handle.dead(), None, "it was told to end");
}

#[tokio::test]
async fn a_panic_is_told_to_all_who_wait() {
    let scene = scene(None).await;
    let failed = answer(scene.handle.submit(request(&[&[PANIC]])).unwrap()).await;
    assert!(matches!(&failed, Err(Failure::Dead(reason)) if reason.contains("told to")), "{failed:?}");
    assert!(scene.handle.dead().unwrap().contains("told to"));
    assert!(matches!(scene.handle.submit(request(&[&[1]])), Err(SubmitError::Dead(_))));
}
