//! Finding about doctor's access to the node's files, and the advice for a denied access.

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;

impl NodeFacts {
    /// Returns the advice for a file that doctor cannot read.
    pub(super) const fn how_to_read(&self) -> &'static str {
        if self.is_root {
            "check the permissions, the mount and the security module, such as SELinux"
        } else {
            "run doctor as root"
        }
    }

    pub(super) fn root(&self) -> Finding {
        const CHECK: &str = "root";
        if self.is_root {
            return Finding::ok(CHECK, "doctor runs as root");
        }
        let found = "expected doctor to run as root, found another user; doctor cannot read some \
                     files";
        Finding::warning(CHECK, found, "run 'sudo plimsoll doctor'")
    }
}
