//! Configuration file in YAML. Fields that also exist in `KubeletConfiguration` have the same name
//! here.
//!
//! [`FIELDS`] defines all fields. `plimsoll config default` prints all fields with their
//! documentation. Every field is optional, and an empty file is valid. If the file becomes empty
//! while the plugin runs, the plugin keeps its previous configuration. [`Config::parse`] reports
//! all mistakes together.

mod brake;
mod choices;
mod draft;
mod errors;
pub mod fields;
mod model;
mod parse;
mod print;
mod reserved;
mod setting;
#[cfg(test)]
mod testing;
mod validate;
mod value;

pub use self::brake::Bounds;
pub use self::choices::{LogLevel, Mode, NodeAllocatable, Shrink};
pub use self::errors::{ConfigErrors, FieldError};
pub use self::fields::FIELDS;
pub use self::model::Config;
pub use self::parse::LARGEST;
pub use self::reserved::{Owner, Reserved};

/// Directory where runtimes look for the configuration of plugins.
pub const DROP_INS: &str = "/etc/nri/conf.d";
