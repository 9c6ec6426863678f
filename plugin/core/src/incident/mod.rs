//! Data types for the incidents that the plugin reports.
//!
//! The code that detects an incident creates an [`Incident`]. The plugin's `report` module decides
//! where the incident appears: in the log, the metrics, the status and Kubernetes Events.
//!
//! The submodule `table` lists all kinds of incidents with their properties.

mod data;
mod identity;
mod kind;
mod log;
mod message;
mod occurrence;
mod subject;
mod table;

pub use self::data::{HighChange, Incident, LowerLimit};
pub use self::identity::Identity;
pub use self::kind::IncidentKind;
pub use self::log::Fields;
pub use self::occurrence::Occurrence;
pub use self::subject::Subject;
pub use self::table::Properties;
