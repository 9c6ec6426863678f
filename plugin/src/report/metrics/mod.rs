//! Counters and gauges in the OpenMetrics format.
//!
//! No series names a pod or a container by default, so the number of series does not grow with the
//! number of containers. The setting `containerMetrics` adds series for each container. A series
//! that cAdvisor also has gets cAdvisor's labels, and cAdvisor's name with the prefix `plimsoll_`.

mod containers;
mod counters;
mod encode;
mod labels;
mod levels;
mod node;
mod rows;

pub use counters::{Events, Metrics};
pub use encode::encode;
pub use labels::{By, File, Level, OfEvent, OfKill, OfKind, OfLevel, OfOutcome, OutcomeLabel};
