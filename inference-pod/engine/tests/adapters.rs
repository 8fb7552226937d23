//! LoRA adapters in the engine: who may use which, and when one is freed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_engine::backend::{
    AdapterError, AdapterId, AdapterInfo, AdapterReader, Backend, BackendError, BlockBytes, BlockId,
    KvCapacity, ReadAdapter, Sampled, StepBatch,
};
use fairlead_engine::engine::{
    EngineHandle, EngineOptions, EngineParts, Event, Failure, Load, Observer, StepReport, start,
};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::sequence::{AdapterKey, GenerationRequest};
use fake::FakeBackend;
use tokio::sync::{mpsc::Receiver, watch};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A [`FakeBackend`] that insists on being asked only for adapters it has.
struct WithAdapters {
    inner: FakeBackend,
    loaded: Arc<Mutex<BTreeSet<AdapterId>>>,
}

struct Reader;

impl AdapterReader for Reader {
    fn read(&self, _: &Path) -> Result<ReadAdapter, AdapterError> {
        Ok(ReadAdapter { info: AdapterInfo { rank: 1, bytes: 1 }, digest: [7; 32], weights: Box::new(()) })
    }
}

impl Backend for WithAdapters {
    fn kv_capacity(&self) -> KvCapacity {
        self.inner.kv_capacity()
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        let loaded = self.loaded.lock().unwrap();
        assert!(batch.sequences.iter().filter_map(|step| step.adapter).all(|id| loaded.contains(&id)));
        self.inner.execute(batch)
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        self.inner.read_blocks(blocks)
    }

    fn adapter_reader(&self) -> Option<Arc<dyn AdapterReader>> {
        Some(Arc::new(Reader))
    }

    fn load_adapter(&mut self, id: AdapterId, _: ReadAdapter) -> Result<(), AdapterError> {
        assert!(self.loaded.lock().unwrap().insert(id), "numbers are not used twice");
        Ok(())
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        assert!(self.loaded.lock().unwrap().remove(&id));
    }
}

type Seen = (BTreeSet<AdapterId>, BTreeSet<AdapterId>);

/// Keeps all that it is told.
struct Watcher(watch::Sender<Vec<Seen>>);

impl Observer for Watcher {
    fn load(&self, _: Load) {}
    fn step(&self, _: StepReport) {}
    fn adapters(&self, running: &BTreeSet<AdapterId>, waiting: &BTreeSet<AdapterId>) {
        self.0.send_modify(|seen| seen.push((running.clone(), waiting.clone())));
    }
}

struct Scene {
    engine: EngineHandle,
    loaded: Arc<Mutex<BTreeSet<AdapterId>>>,
    seen: watch::Receiver<Vec<Seen>>,
    /// While it is held no step ends.
    gate: Arc<Mutex<()>>,
}

impl Scene {
    async fn new() -> Self {
        let loaded = Arc::new(Mutex::new(BTreeSet::new()));
        let (sender, seen) = watch::channel(Vec::new());
        let gate = Arc::new(Mutex::new(()));
        let mut inner = FakeBackend::new(64, 4);
        let held = Arc::clone(&gate);
        inner.failures = Box::new(move |_, _| {
            drop(held.lock().unwrap());
            None
        });
        let backend = WithAdapters { inner, loaded: Arc::clone(&loaded) };
        let options = EngineOptions { max_sequences: 1, max_adapters: 2, max_queued: 8, ..options() };
        let engine =
            start(Box::new(Watcher(sender)), move || Ok::<_, String>(EngineParts::new(backend, options)))
                .await
                .unwrap();
        Self { engine, loaded, seen, gate }
    }

    async fn load(&self) -> Result<AdapterKey, AdapterError> {
        self.engine.load_adapter(self.engine.adapter_reader().unwrap().read(Path::new("/")).unwrap()).await
    }

    fn ask(&self, adapter: AdapterKey, tokens: u32) -> Receiver<Event> {
        let request = GenerationRequest {
            prompt: vec![1, 2, 3],
            max_new_tokens: tokens,
            sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
            adapter: Some(adapter),
            ..GenerationRequest::default()
        };
        self.engine.submit(request).unwrap()
    }

    fn loaded(&self) -> Vec<AdapterId> {
        self.loaded.lock().unwrap().iter().copied().collect()
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        max_sequences: 4,
        max_batched_tokens: 16,
        max_logits_rows: 16,
        prefix_sharing: true,
        max_model_len: 200,
        max_queued: 8,
        max_adapters: 2,
        tiers: fairlead_engine::tiers::TierOptions { host_bytes: None, disk: None, transit_bytes: 0 },
    }
}

/// Reads an answer to its end: how many tokens, and how it failed.
async fn read(mut events: Receiver<Event>) -> (usize, Option<Failure>) {
    let mut tokens = 0;
    loop {
        match timeout(PATIENCE, events.recv()).await.expect("the engine goes on") {
            Some(Event::Token { end, .. }) => {
                tokens += 1;
                if end.is_some() {
                    return (tokens, None);
                }
            }
            Some(Event::Failed(failure)) => return (tokens, Some(failure)),
            Some(_) => {}
            None => return (tokens, None),
        }
    }
}

#[tokio::test]
async fn an_adapter_that_leaves_finishes_what_it_has_and_takes_nothing_new() {
    let scene = Scene::new().await;
    let adapter = scene.load().await.unwrap();
    // One runs, one waits behind it.
    let (running, waiting) = (scene.ask(adapter, 100), scene.ask(adapter, 5));
    let mut unload = Box::pin(scene.engine.unload_adapter(adapter.id));
    // Sent by the first poll; not answered while they go on.
    let _ = futures_poll(&mut unload).await;
    let late = scene.ask(adapter, 5);
    assert_eq!(read(late).await, (0, Some(Failure::AdapterGone)));
    assert_eq!(read(running).await, (100, None));
    assert_eq!(read(waiting).await, (5, None));
    timeout(PATIENCE, unload).await.expect("is freed").unwrap();
    assert!(scene.loaded().is_empty());
    assert_eq!(read(scene.ask(adapter, 5)).await, (0, Some(Failure::AdapterGone)));
}

/// Polls a future once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_ready())
    })
    .await
}

#[tokio::test]
async fn no_more_than_allowed_are_loaded_and_a_place_is_given_back() {
    let scene = Scene::new().await;
    let first = scene.load().await.unwrap();
    let second = scene.load().await.unwrap();
    assert_ne!(first.id, second.id);
    let refused = scene.load().await.unwrap_err();
    assert!(matches!(&refused, AdapterError::NoRoom(problem) if problem.contains("engine.maxAdapters")));
    scene.engine.unload_adapter(first.id).await.unwrap();
    // Gone already, or never there: nothing to wait for.
    scene.engine.unload_adapter(first.id).await.unwrap();
    scene.engine.unload_adapter(99).await.unwrap();
    let third = scene.load().await.unwrap();
    assert!(third.id > second.id);
    assert_eq!(scene.loaded(), [second.id, third.id]);
}

#[tokio::test]
async fn who_runs_and_who_waits_is_told() {
    let mut scene = Scene::new().await;
    let (first, second) = (scene.load().await.unwrap(), scene.load().await.unwrap());
    let gate = Arc::clone(&scene.gate);
    let held = gate.lock().unwrap();
    let (running, waiting) = (scene.ask(first, 190), scene.ask(second, 1));
    drop(held);
    let both = (BTreeSet::from([first.id]), BTreeSet::from([second.id]));
    timeout(PATIENCE, scene.seen.wait_for(|seen| seen.contains(&both))).await.expect("is told").unwrap();
    // A client that leaves frees its adapter's place too.
    drop(running);
    assert_eq!(read(waiting).await, (1, None));
    timeout(PATIENCE, scene.seen.wait_for(|seen| seen.last() == Some(&Seen::default())))
        .await
        .expect("is told")
        .unwrap();
}

#[tokio::test]
async fn an_engine_that_ends_leaves_nobody_waiting() {
    let scene = Scene::new().await;
    let adapter = scene.load().await.unwrap();
    let answer = scene.ask(adapter, 20);
    scene.engine.drain().await;
    // Whether it was freed or the engine ended first: somebody says so.
    let unload = timeout(PATIENCE, scene.engine.unload_adapter(adapter.id)).await.expect("is answered");
    assert!(matches!(unload, Ok(()) | Err(AdapterError::Dead(_))), "{unload:?}");
    assert_eq!(read(answer).await, (20, None));
    assert!(matches!(scene.load().await, Err(AdapterError::Dead(_))));
}
