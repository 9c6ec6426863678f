//! The kubelet's checkpoint files.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::kubelet::double::{Kubelet, STATE};
use crate::kubelet::script::put;

impl Kubelet<'_> {
    /// Removes the checkpoint files. The files stay absent while [`Kubelet::checkpoints`] is false.
    pub fn remove_checkpoints(&self) -> Result<()> {
        self.node.run(&format!("rm -f {STATE}/*_pods_state")).map(|_| ())
    }

    pub(super) fn write_checkpoint(
        &self,
        script: &mut String,
        name: &str,
        entries: &Map<String, Value>,
    ) -> Result<()> {
        if self.checkpoints {
            let checkpoint = checkpoint(entries)?;
            put(script, &format!("{STATE}/.{name}"), &checkpoint);
            let _ = writeln!(script, "mv {STATE}/.{name} {STATE}/{name}");
        }
        Ok(())
    }
}

/// Returns the content of a checkpoint file.
///
/// `data` is JSON in a string. The kubelet verifies the checksum of `data`.
pub fn checkpoint(entries: &Map<String, Value>) -> Result<Value> {
    let data =
        serde_json::to_string(&json!({ "entries": entries })).context("writing a checkpoint")?;
    // The checksum is the 32-bit FNV-1a hash of the value as Go prints it with its type.
    let checksum = format!("(string){data}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ok(json!({ "data": data, "checksum": checksum }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_matches_a_known_go_value() {
        let mut entries = Map::new();
        entries.insert("a".to_owned(), json!(1));
        let checkpoint = checkpoint(&entries).unwrap();
        assert_eq!(checkpoint["data"], r#"{"entries":{"a":1}}"#);
        assert_eq!(checkpoint["checksum"], 1_714_924_793_u32);
    }
}
