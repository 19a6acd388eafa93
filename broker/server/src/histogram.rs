//! A histogram of durations that the hot path may feed: atomics only, no lock, no allocation.
//!
//! `metrics.rs` registers it; requests and appends observe. It never forgets, as Prometheus wants it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Counts of durations, each in the first bucket whose bound it does not exceed.
#[derive(Debug, Clone)]
pub(crate) struct DurationHistogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Upper bounds in nanoseconds, ascending.
    bounds: &'static [u64],
    /// One for each bound, and the last for what exceeds them all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl DurationHistogram {
    /// A histogram with these upper bounds, in nanoseconds, ascending.
    pub(crate) fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, sum: AtomicU64::new(0) }))
    }

    /// Counts one duration.
    pub(crate) fn observe(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Inner { bounds, counts, sum } = &*self.0;
        // Most are short: the first bounds decide.
        let bucket = bounds.iter().position(|bound| nanoseconds <= *bound).unwrap_or(bounds.len());
        counts[bucket].fetch_add(1, Relaxed);
        sum.fetch_add(nanoseconds, Relaxed);
    }
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Inner { bounds, counts, sum } = &*self.0;
        let bounds = bounds.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().map(|count| count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(seconds(sum.load(Relaxed)), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[allow(clippy::cast_precision_loss, reason = "a metric needs no more than 52 bits")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        let histogram = DurationHistogram::new(&[1_000, 1_000_000]);
        for nanoseconds in [1, 1_000, 1_001, 5_000_000_000] {
            histogram.observe(Duration::from_nanos(nanoseconds));
        }
        let mut registry = Registry::default();
        registry.register("took", "How long", histogram);
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        for line in [
            "took_bucket{le=\"0.000001\"} 2",
            "took_bucket{le=\"0.001\"} 3",
            "took_bucket{le=\"+Inf\"} 4",
            "took_count 4",
            "took_sum 5.000002002",
        ] {
            assert!(page.contains(line), "no {line:?} in:\n{page}");
        }
    }
}
