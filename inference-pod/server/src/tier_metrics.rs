//! The KV tiers' numbers as metrics, `fairlead_kv_tier_*` with the label `tier`: read from the engine's counters whenever
//! metrics are asked for.

use std::fmt;
use std::sync::Arc;

use fairlead_engine::tiers::{Tier, TierCounters, TierSnapshot};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Shows [`TierCounters`].
#[derive(Debug)]
pub struct TierMetrics(pub Arc<TierCounters>);

type Read<T> = fn(&TierSnapshot) -> T;

const GAUGES: [(&str, &str, Option<Unit>, Read<u64>); 2] = [
    ("fairlead_kv_tier_blocks", "Blocks that a tier holds", None, |tier| tier.blocks),
    ("fairlead_kv_tier_size", "Bytes that a tier takes", Some(Unit::Bytes), |tier| tier.bytes),
];

const COUNTERS: [(&str, &str, Option<Unit>, Read<u64>); 8] = [
    ("fairlead_kv_tier_hits", "Blocks that a sequence was given from a tier", None, |tier| tier.hits),
    ("fairlead_kv_tier_misses", "Blocks that a sequence wanted and a tier did not have", None, |tier| {
        tier.misses
    }),
    ("fairlead_kv_tier_stores", "Blocks put into a tier", None, |tier| tier.stores),
    ("fairlead_kv_tier_evictions", "Blocks that a tier gave up for others", None, |tier| tier.evictions),
    ("fairlead_kv_tier_corrupt", "Blocks that could not be read back as they were written", None, |tier| {
        tier.corrupt
    }),
    (
        "fairlead_kv_tier_skipped",
        "Blocks not stored or not fetched: a full queue, a disk that is not ready or that failed",
        None,
        |tier| tier.skipped,
    ),
    ("fairlead_kv_tier_load", "Bytes read from a tier", Some(Unit::Bytes), |tier| tier.load_bytes),
    ("fairlead_kv_tier_store", "Bytes written to a tier", Some(Unit::Bytes), |tier| tier.store_bytes),
];

const TIMES: [(&str, &str, Read<f64>); 2] = [
    (
        "fairlead_kv_tier_load",
        "Time that reading from a tier took; main memory is read as part of a step and counts none",
        |tier| tier.load_time.as_secs_f64(),
    ),
    ("fairlead_kv_tier_store", "Time that writing to a tier took", |tier| tier.store_time.as_secs_f64()),
];

impl TierMetrics {
    fn family<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<&Unit>),
        kind: MetricType,
        metric: impl Fn(&TierSnapshot) -> M,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for tier in Tier::ALL {
            metric(&self.0.snapshot(tier)).encode(family.encode_family(&[("tier", tier.as_str())])?)?;
        }
        Ok(())
    }
}

impl Collector for TierMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, read) in GAUGES {
            self.family(&mut encoder, (name, help, unit.as_ref()), MetricType::Gauge, |tier| {
                // No tier comes near 2^63 bytes.
                ConstGauge::new(i64::try_from(read(tier)).unwrap_or(i64::MAX))
            })?;
        }
        for (name, help, unit, read) in COUNTERS {
            let counter = |tier: &TierSnapshot| ConstCounter::new(read(tier));
            self.family(&mut encoder, (name, help, unit.as_ref()), MetricType::Counter, counter)?;
        }
        for (name, help, read) in TIMES {
            let counter = |tier: &TierSnapshot| ConstCounter::new(read(tier));
            self.family(&mut encoder, (name, help, Some(&Unit::Seconds)), MetricType::Counter, counter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    /// Dashboards and alerts read these names.
    #[test]
    fn every_number_has_a_name_with_its_unit_for_both_tiers() {
        let mut registry = Registry::default();
        registry
            .sub_registry_with_label(("model_name".into(), "m".into()))
            .register_collector(Box::new(TierMetrics(Arc::default())));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for name in [
            "blocks",
            "size_bytes",
            "hits_total",
            "misses_total",
            "stores_total",
            "evictions_total",
            "corrupt_total",
            "skipped_total",
            "load_bytes_total",
            "store_bytes_total",
            "load_seconds_total",
            "store_seconds_total",
        ] {
            for tier in ["host", "disk"] {
                let line = |line: &str| {
                    line.starts_with(&format!("fairlead_kv_tier_{name}{{"))
                        && line.contains("model_name=\"m\"")
                        && line.contains(&format!("tier=\"{tier}\""))
                };
                assert_eq!(text.lines().filter(|it| line(it)).count(), 1, "{name} {tier}\n{text}");
            }
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("fairlead_kv_tier_")).count(), 24);
    }
}
