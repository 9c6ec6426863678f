//! Counters and gauges in the OpenMetrics format.
//!
//! No series names a pod or a container by default, so 10,000 containers have as many series as
//! one. With `containerMetrics` there are series for each container. If cAdvisor has the same
//! series, this series has cAdvisor's name and labels after the prefix `plimsoll_`.

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
