//! Sequences of steps that several tests need.
//!
//! Most sequences reproduce problems that users had with in-place resizes. The steps are the same
//! for nodes with the plugin and without the plugin.

mod balloon;
pub mod pressure;
mod random;
pub mod recording;
mod resizes;
mod throttled;

pub use balloon::{Balloon, Latency, balloon};
pub use random::Random;
pub use resizes::{
    NEEDS, alloc, ample_pod, decrease_limit, decrease_limit_below_cache, grow_during_decrease,
    memory, memory_high, read_fate, run_oom_killed, run_satisfied,
};
pub use throttled::{MEMORY_HIGH, Stall, exceed_high, stall_at_high};
