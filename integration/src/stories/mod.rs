//! Problems that users of in-place resize have had.
//!
//! The steps are the same for nodes with the plugin and without it.

mod balloon;
pub mod pressure;
mod random;
pub mod recording;
mod resizes;
mod throttled;

pub use balloon::{Balloon, Latency, balloon};
pub use random::Random;
pub use resizes::{
    NEEDS, alloc, ample, cached, cut, fate, grows_while_it_is_cut, hungry, memory, memory_high,
    satisfied,
};
pub use throttled::{LINE, Standing, goes_beyond, stands};
