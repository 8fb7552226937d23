//! The KV tiers in the engine: answers stay what they are, whatever comes from main memory or disk, or does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_engine::engine::{
    EngineHandle, EngineOptions, EngineParts, Event, Load, Observer, StepReport, start,
};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::sequence::GenerationRequest;
use fairlead_engine::tiers::folder::file_bytes;
use fairlead_engine::tiers::{DiskOptions, Tier, TierCounters, TierOptions, TierSnapshot};
use fake::{FakeBackend, next_token};
use proptest::prelude::*;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK_TOKENS: u32 = 4;

struct Watcher(Arc<TierCounters>);

impl Observer for Watcher {
    fn load(&self, _: Load) {}

    fn step(&self, _: StepReport) {}

    fn tier_counters(&self) -> Arc<TierCounters> {
        Arc::clone(&self.0)
    }
}

struct Running {
    engine: EngineHandle,
    counters: Arc<TierCounters>,
}

/// Sizes are in blocks.
async fn run(blocks: u32, host: Option<u64>, disk: Option<(&Path, u64)>) -> Running {
    let backend = FakeBackend::new(blocks, BLOCK_TOKENS);
    let block_bytes = backend.capacity.block_bytes;
    let tiers = TierOptions {
        host_bytes: host.map(|blocks| blocks * block_bytes),
        disk: disk.map(|(path, blocks)| DiskOptions {
            path: path.to_owned(),
            bytes: blocks * file_bytes(block_bytes),
            fingerprint: [1; 32],
        }),
        transit_bytes: 64 * block_bytes,
    };
    let options = EngineOptions {
        max_sequences: 3,
        max_batched_tokens: 16,
        max_logits_rows: 16,
        max_model_len: 100,
        prefix_sharing: true,
        max_queued: 64,
        max_adapters: 0,
        tiers,
    };
    let counters = Arc::new(TierCounters::default());
    let observer = Box::new(Watcher(Arc::clone(&counters)));
    let engine = start(observer, move || Ok::<_, String>(EngineParts::new(backend, options))).await.unwrap();
    Running { engine, counters }
}

impl Running {
    fn submit(&self, prompt: &[u32], max_new_tokens: u32) -> Receiver<Event> {
        let request = GenerationRequest {
            prompt: prompt.to_vec(),
            max_new_tokens,
            sampling: SamplingOptions { temperature: 0.0, seed: 3, ..SamplingOptions::default() },
            ..GenerationRequest::default()
        };
        self.engine.submit(request).unwrap()
    }

    async fn ask(&self, prompt: &[u32], new: u32) {
        assert_eq!(read(self.submit(prompt, new)).await, expected(prompt, new));
    }

    fn tier(&self, tier: Tier) -> TierSnapshot {
        self.counters.snapshot(tier)
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            let (host, disk) = (self.tier(Tier::Host), self.tier(Tier::Disk));
            assert!(begun.elapsed() < PATIENCE, "not in time: {host:?} {disk:?}");
            tokio::task::yield_now().await;
        }
    }
}

async fn read(mut events: Receiver<Event>) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(event) = timeout(PATIENCE, events.recv()).await.expect("no event in time") {
        match event {
            Event::Token { token, .. } => tokens.push(token.token),
            Event::Failed(failure) => panic!("{failure}"),
            Event::Admitted { .. } | Event::Ended { .. } | Event::PromptLogprobs(_) => {}
        }
    }
    tokens
}

fn expected(prompt: &[u32], count: u32) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for draw in 0..u64::from(count) {
        tokens.push(next_token(&tokens, 3, draw));
    }
    tokens.split_off(prompt.len())
}

/// Forty tokens that no other number's prompt begins with.
fn prompt(number: u32) -> Vec<u32> {
    (0..40).map(|position| (number * 7 + position) % 50).collect()
}

#[tokio::test]
async fn a_prompt_that_the_cache_gave_up_comes_back_from_main_memory() {
    let pod = run(16, Some(100), None).await;
    pod.ask(&prompt(1), 3).await;
    pod.until(|pod| pod.tier(Tier::Host).blocks >= 10).await;
    for number in 2..6 {
        pod.ask(&prompt(number), 3).await;
    }
    assert_eq!(pod.tier(Tier::Host).hits, 0);
    pod.ask(&prompt(1), 3).await;
    let host = pod.tier(Tier::Host);
    assert!(host.hits >= 9, "{host:?}");
    assert_eq!(pod.tier(Tier::Disk), TierSnapshot::default());
}

#[tokio::test]
async fn a_restart_finds_prompts_on_disk_and_a_broken_file_is_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let pod = run(16, None, Some((dir.path(), 100))).await;
    pod.until(|pod| pod.tier(Tier::Disk).skipped == 0).await;
    // Until the folder is open nothing is kept; then all is.
    while pod.tier(Tier::Disk).blocks < 10 {
        pod.ask(&prompt(1), 3).await;
        pod.ask(&prompt(2), 3).await;
        pod.ask(&prompt(3), 3).await;
    }
    pod.engine.drain().await;
    drop(pod);

    for breaks in [false, true] {
        if breaks {
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let path = entry.unwrap().path();
                let mut contents = std::fs::read(&path).unwrap();
                if let Some(byte) = contents.last_mut() {
                    *byte ^= 64;
                    std::fs::write(&path, contents).unwrap();
                }
            }
        }
        let pod = run(16, Some(50), Some((dir.path(), 100))).await;
        pod.until(|pod| pod.tier(Tier::Disk).blocks >= 10).await;
        for number in 1..4 {
            pod.ask(&prompt(number), 3).await;
        }
        let disk = pod.tier(Tier::Disk);
        if breaks {
            assert!(disk.corrupt > 0 && disk.hits == 0, "{disk:?}");
        } else {
            assert!(disk.corrupt == 0 && disk.hits >= 9, "{disk:?}");
            assert!(pod.tier(Tier::Host).blocks >= 9, "what was fetched is kept");
        }
        pod.until(|pod| pod.tier(Tier::Disk).blocks >= 20).await;
        pod.engine.drain().await;
    }
}

#[tokio::test]
async fn a_folder_of_another_process_costs_nothing_but_the_tier() {
    let dir = tempfile::tempdir().unwrap();
    let owner = std::fs::File::create(dir.path().join("fairlead-kv.lock")).unwrap();
    owner.lock().unwrap();
    let pod = run(16, None, Some((dir.path(), 100))).await;
    for number in [1, 2, 3, 1] {
        pod.ask(&prompt(number), 3).await;
    }
    let disk = pod.tier(Tier::Disk);
    assert_eq!((disk.blocks, disk.hits, disk.stores), (0, 0, 0));
}

#[derive(Clone, Debug)]
struct Ask {
    family: u32,
    length: usize,
    new: u32,
    is_dropped: bool,
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let ask = (0_u32..4, 1_usize..56, 1_u32..12, prop::bool::weighted(0.1))
        .prop_map(|(family, length, new, is_dropped)| Ask { family, length, new, is_dropped });
    prop::collection::vec(ask, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Prompts of four families with common beginnings, more than the cache holds, over several processes with files broken
    /// between them. The fake backend answers by what its cache holds, so one wrong block shows.
    #[test]
    fn answers_are_those_of_an_engine_without_tiers(
        host in prop::option::of(1_u64..20),
        disk_blocks in 1_u64..60,
        rounds in prop::collection::vec((asks(), any::<u64>()), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            for (asks, breakage) in rounds {
                let pod = run(18, host, Some((dir.path(), disk_blocks))).await;
                // So that the first to ask may already find what the process before has left.
                let names = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name());
                if names.into_iter().any(|name| name.to_str().unwrap().ends_with(".fairlead-kv")) {
                    pod.until(|pod| pod.tier(Tier::Disk).blocks > 0).await;
                }
                let mut waiting = Vec::new();
                for ask in &asks {
                    let prompt: Vec<u32> =
                        (0..ask.length as u32).map(|position| (ask.family * 11 + position * position) % 50).collect();
                    let events = pod.submit(&prompt, ask.new);
                    if !ask.is_dropped {
                        waiting.push((events, expected(&prompt, ask.new)));
                    }
                }
                for (events, expected) in waiting {
                    assert_eq!(read(events).await, expected);
                }
                let host_bytes = host.unwrap_or(0) * pod.engine.capacity().block_bytes;
                assert!(pod.tier(Tier::Host).bytes <= host_bytes);
                assert!(pod.tier(Tier::Disk).bytes <= disk_blocks * 4096);
                pod.engine.drain().await;
                for (index, entry) in std::fs::read_dir(dir.path()).unwrap().flatten().enumerate() {
                    if breakage >> (index % 64) & 1 == 1
                        && let Ok(mut contents) = std::fs::read(entry.path())
                        && !contents.is_empty()
                    {
                        let place = (breakage as usize).wrapping_mul(31) % contents.len();
                        contents[place] ^= 1 << (index % 8);
                        let _ = std::fs::write(entry.path(), contents);
                    }
                }
            }
        });
    }
}
