//! The runtime's events that are being answered now. The plugin asks the runtime for nothing
//! meanwhile.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::lock;

/// The runtime's events, as far as this plugin receives them.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Number of events that are being answered.
    pub under_way: usize,
    /// Time of the last answer.
    pub last: Option<Instant>,
}

/// Event that is being answered, until this value is dropped.
#[derive(Debug)]
pub struct Event(pub Arc<Mutex<Traffic>>);

impl Drop for Event {
    fn drop(&mut self) {
        let mut traffic = lock(&self.0);
        traffic.under_way -= 1;
        traffic.last = Some(Instant::now());
    }
}
