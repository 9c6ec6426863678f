//! Rows, each of which describes one metric: its name, help text and value. The other files of this
//! folder define the metrics.

use std::fmt;
use std::sync::atomic::AtomicU64;

use plimsoll_core::units::Bytes;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

/// A metric with its name, its help text and its unit.
pub(super) struct Row {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    metric: Box<dyn Metric>,
}

/// Returns a metric without a unit.
pub(super) fn plain(name: &'static str, help: &'static str, metric: impl Metric) -> Row {
    Row { name, help, unit: None, metric: Box::new(metric) }
}

/// Returns a metric in bytes.
pub(super) fn bytes(name: &'static str, help: &'static str, metric: impl Metric) -> Row {
    Row { name, help, unit: Some(Unit::Bytes), metric: Box::new(metric) }
}

/// Returns a metric in seconds.
pub(super) fn seconds(name: &'static str, help: &'static str, metric: impl Metric) -> Row {
    Row { name, help, unit: Some(Unit::Seconds), metric: Box::new(metric) }
}

/// Registers the metrics in order.
pub(super) fn register(registry: &mut Registry, rows: impl IntoIterator<Item = Row>) {
    for Row { name, help, unit, metric } in rows {
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, AnyMetric(metric)),
            None => registry.register(name, help, AnyMetric(metric)),
        }
    }
}

/// A metric of any type.
#[derive(Debug)]
struct AnyMetric(Box<dyn Metric>);

impl EncodeMetric for AnyMetric {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

/// Returns a gauge whose value is an amount of memory.
pub(super) fn gauge(bytes: Bytes) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(number(bytes));
    gauge
}

/// Returns a gauge whose value is a count.
pub(super) fn count(things: usize) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(to_i64(things));
    gauge
}

/// Returns a gauge that is 1 if `is_so`, and 0 otherwise.
pub(super) fn one_if(is_so: bool) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::from(is_so));
    gauge
}

/// Returns a gauge whose value is a real number.
pub(super) fn real(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// Converts an amount of memory to a gauge value.
pub(super) fn number(bytes: Bytes) -> i64 {
    i64::try_from(bytes.get()).unwrap_or(i64::MAX)
}

/// Converts a count to a gauge value.
pub(super) fn to_i64(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}
