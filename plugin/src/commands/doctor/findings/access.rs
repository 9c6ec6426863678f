//! Finding and advice about access to the node.

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;

impl NodeFacts {
    /// Returns the advice for a file that cannot be read.
    pub(super) const fn how_to_read(&self) -> &'static str {
        if self.is_root { "see why that cannot be read" } else { "call this as root" }
    }

    pub(super) fn root(&self) -> Finding {
        const CHECK: &str = "root";
        if self.is_root {
            return Finding::ok(CHECK, "this runs as root");
        }
        Finding::warning(
            CHECK,
            "this does not run as root, so some findings are guesses",
            "call it again with sudo",
        )
    }
}
