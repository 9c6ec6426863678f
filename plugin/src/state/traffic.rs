//! The runtime's events that the plugin is answering now. While the plugin answers an event, it
//! sends no request to the runtime.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::lock;

/// Data about the runtime's events that this plugin receives.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Number of events that the plugin has not answered yet.
    pub under_way: usize,
    /// Time of the last answer.
    pub last: Option<Instant>,
}

/// Event that the plugin is answering. The event counts as answered once this value is dropped.
#[derive(Debug)]
pub struct Event(pub Arc<Mutex<Traffic>>);

impl Drop for Event {
    fn drop(&mut self) {
        let mut traffic = lock(&self.0);
        traffic.under_way -= 1;
        traffic.last = Some(Instant::now());
    }
}
