//! What the plugin knows, and what it keeps in files over restarts.

pub mod brake;
pub mod containers;
pub mod originals;
pub mod raised;
