//! Messages about the plugin's state on the node.

use crate::config::Mode;
use crate::report::status::NodeStatus;

/// Returns the reasons why the plugin sets no values, or sets no values for new containers.
pub(super) fn not_ready_reasons(node: &NodeStatus) -> impl Iterator<Item = &'static str> {
    let waits = (!node.synchronized)
        .then_some("waiting for the container runtime: new containers get no values");
    let stands_aside =
        "'plimsoll restore' was called: the plugin sets no values until 'plimsoll restore --undo'";
    waits.into_iter().chain(node.stands_aside.then_some(stands_aside))
}

/// Returns the messages for a plugin that only observes; empty otherwise.
pub(super) fn describe_observe_mode(node: &NodeStatus) -> Vec<String> {
    if node.mode == Mode::Enforce || node.stands_aside {
        return Vec::new();
    }
    let why = match &node.brake {
        Some(brake) => {
            format!(
                "brake applied after {brake}: the plugin sets no values until 'plimsoll \
                reset-brake'"
            )
        }
        None => "observe mode: the plugin sets, raises and refuses nothing".to_owned(),
    };
    let would = format!(
        "desired values come before '!='; {} containers would be throttled now, {} limit \
         decreases would have been refused within ten minutes",
        node.would_throttle, node.would_refuse
    );
    vec![why, would]
}
