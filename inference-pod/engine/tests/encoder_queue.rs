//! What runs together: every input once, in its request's order, within the budget, and nobody waits for ever.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;

use fairlead_engine::encoder::{BatchBudget, EncoderQueue};
use proptest::prelude::*;

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..40, 1..12)
}

#[test]
fn one_text_does_not_wait_for_the_thousand_before_it() {
    let mut queue = EncoderQueue::default();
    queue.add(1, vec![8; 1000]);
    let budget = BatchBudget { tokens: 64, inputs: 100 };
    let batch = queue.next_batch(budget);
    assert_eq!(batch.len(), 8);
    queue.done(&batch);
    queue.add(2, vec![8]);
    assert!(queue.next_batch(budget).iter().any(|item| item.request == 2));
}

#[test]
fn an_input_longer_than_the_budget_runs_alone() {
    let mut queue = EncoderQueue::default();
    queue.add(1, vec![100, 3]);
    queue.add(2, vec![3]);
    let budget = BatchBudget { tokens: 10, inputs: 8 };
    let batch = queue.next_batch(budget);
    assert_eq!(batch.iter().map(|item| (item.request, item.index)).collect::<Vec<_>>(), [(1, 0)]);
    queue.done(&batch);
    let rest = queue.next_batch(budget);
    assert_eq!(rest.iter().map(|item| (item.request, item.index)).collect::<Vec<_>>(), [(2, 0), (1, 1)]);
}

proptest! {
    #[test]
    fn every_input_runs_once_and_in_order_within_the_budget(
        requests in prop::collection::vec(lengths(), 1..12),
        tokens in 1_usize..64,
        inputs in 1_usize..10,
        arrivals in prop::collection::vec(0_usize..4, 1..40),
        leaver in 0_u64..12,
    ) {
        let budget = BatchBudget { tokens, inputs };
        let mut queue = EncoderQueue::default();
        let mut next: HashMap<u64, usize> = HashMap::new();
        // Batches that a request has been waiting for its next input, and how many were before it when that began.
        let mut patience: HashMap<u64, (usize, usize)> = HashMap::new();
        let mut coming = requests.iter().enumerate();
        let mut arrivals = arrivals.into_iter();
        let mut left = false;
        loop {
            let now = arrivals.next().unwrap_or(usize::MAX).min(requests.len());
            for (id, lengths) in coming.by_ref().take(now) {
                patience.insert(id as u64, (0, queue.len() + 1));
                queue.add(id as u64, lengths.clone());
            }
            if !left && next.get(&leaver).is_some_and(|ran| *ran > 0) {
                left = true;
                queue.remove(leaver);
                patience.remove(&leaver);
            }
            let batch = queue.next_batch(budget);
            prop_assert!(!batch.is_empty() || queue.is_empty());
            if batch.is_empty() && coming.len() == 0 {
                break;
            }
            prop_assert!(batch.len() <= inputs);
            let sum: usize = batch.iter().map(|item| item.tokens).sum();
            prop_assert!(sum <= tokens || batch.len() == 1, "{sum} tokens of {tokens} in {batch:?}");
            for item in &batch {
                let expected = next.entry(item.request).or_default();
                prop_assert_eq!(item.index, *expected);
                prop_assert_eq!(item.tokens, requests[item.request as usize][item.index]);
                *expected += 1;
                prop_assert!(!(left && item.request == leaver), "a request that has gone runs");
            }
            queue.done(&batch);
            let waiting = queue.len();
            patience.retain(|id, (batches, ahead)| {
                let done = next.get(id).is_some_and(|ran| *ran == requests[*id as usize].len());
                if batch.iter().any(|item| item.request == *id) {
                    (*batches, *ahead) = (0, waiting + 1);
                } else {
                    *batches += 1;
                }
                !done
            });
            for (id, (batches, ahead)) in &patience {
                prop_assert!(batches <= ahead, "request {id} has waited for {batches} batches behind {ahead} requests");
            }
        }
        for (id, lengths) in requests.iter().enumerate() {
            let ran = next.get(&(id as u64)).copied().unwrap_or(0);
            prop_assert!(ran == lengths.len() || (left && id as u64 == leaver), "request {id} ran {ran} inputs");
        }
    }
}
