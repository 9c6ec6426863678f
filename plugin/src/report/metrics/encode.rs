//! Text that contains all metrics.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::report::metrics::containers::register_containers;
use crate::report::metrics::counters::Metrics;
use crate::report::metrics::levels::register_levels;
use crate::report::metrics::node::register_node;
use crate::report::status::Status;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVersion {
    version: String,
}

/// Encodes all metrics as OpenMetrics 1.0 text.
///
/// # Errors
///
/// Never, because writing to a `String` cannot fail.
pub fn encode(
    metrics: &Metrics,
    status: &Status,
    of_containers: bool,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("plimsoll");
    let build = Family::<OfVersion, Gauge>::default();
    build.get_or_create(&OfVersion { version: status.plimsoll.clone() }).set(1);
    registry.register("build_info", "The program's version", build);
    metrics.register(&mut registry);
    register_node(status, &mut registry);
    register_levels(status, &mut registry);
    if of_containers {
        register_containers(status, &mut registry);
    }
    let mut output = String::new();
    text::encode(&mut output, &registry)?;
    Ok(output)
}
