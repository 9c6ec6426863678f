//! Waits for messages in a node's journal.

use anyhow::{Context, Result, bail};

use crate::machine::Node;

/// A regular expression for the runtime's log line after a synchronisation with the plugin.
///
/// After a synchronisation, the runtime logs a line for each plugin that it will call. The line is
/// the same for launched and external plugins and for every version from NRI 0.6.
const SYNCHRONISED: &str = "#[0-9]+: .*90-plimsoll";

/// Runs a script on the node and waits for the new synchronisation that the script must cause.
pub fn until_synchronised(node: &Node, script: &str) -> Result<()> {
    wait_for_journal(node, node.runtime().unit(), SYNCHRONISED, script)
}

/// Returns the external plugin's messages without the first `skip` messages.
///
/// The journal of a node contains the messages of earlier cases, so a case skips these messages.
pub fn journal(node: &Node, skip: usize) -> Result<Vec<String>> {
    let output = node.run("journalctl --unit plimsoll --output cat")?.stdout;
    Ok(output.lines().skip(skip).map(str::to_owned).collect())
}

/// Returns a cursor for the current end of the node's journal.
pub fn cursor(node: &Node) -> Result<String> {
    Ok(node.run(CURSOR)?.stdout.trim().to_owned())
}

/// Waits until the runtime has synchronised with the plugin after this position in the journal.
pub fn until_synchronised_since(node: &Node, cursor: &str) -> Result<()> {
    wait_since(node, cursor, node.runtime().unit(), SYNCHRONISED, "")
        .context("waiting for the plugin")
}

const CURSOR: &str =
    "journalctl --quiet --lines 1 --show-cursor --output cat | sed -n 's/^-- cursor: //p'";

/// Runs a script on the node and then waits for a new line in the journal of `unit`.
///
/// The line must match the extended regular expression `pattern`.
pub fn wait_for_journal(node: &Node, unit: &str, pattern: &str, script: &str) -> Result<()> {
    wait_since(node, &format!("$({CURSOR})"), unit, pattern, script)
}

fn wait_since(node: &Node, cursor: &str, unit: &str, pattern: &str, script: &str) -> Result<()> {
    const SECONDS: u32 = 60;
    let output = node.try_run(&format!(
        "cursor=\"{cursor}\"
         {script}
         exec 3< <(exec journalctl --unit {unit} --after-cursor \"$cursor\" --output cat \
             --no-tail --follow 2>/dev/null)
         follower=$!
         status=0
         timeout {SECONDS} grep -E -q -m 1 '{pattern}' <&3 || status=$?
         kill $follower
         if [ $status != 0 ]; then
             echo 'no line matched {pattern} within {SECONDS} s; the journal since:'
             journalctl --after-cursor \"$cursor\" --output cat | tail -n 40
         fi >&2
         exit $status"
    ))?;
    if !output.status.success() {
        bail!("waiting for {unit} ({}): {}", output.status, output.stderr.trim_end());
    }
    Ok(())
}

/// Returns a description if containerd hangs while it processes a plugin's request to update
/// containers.
///
/// containerd/containerd#13733 describes the hang. Without the fix in containerd/nri#301, the hang
/// may last forever. containerd counts as hanging if two dumps of its stacks, some seconds apart,
/// both contain the request.
pub(crate) fn is_stuck(node: &Node) -> Option<String> {
    if node.runtime().unit() != "containerd" {
        return None;
    }
    const REQUEST: &str = "adaptation.(*Adaptation).updateContainers";
    let dump = "systemctl kill --kill-whom main --signal USR1 containerd";
    // In the journal, each dump has one line with this text per stack that processes the request.
    let found = || -> Option<u64> {
        let count =
            format!("journalctl --unit containerd --output cat | grep -cF '{REQUEST}' || true");
        node.run(&count).ok()?.stdout.trim().parse().ok()
    };
    let dumped = |script: &str| {
        wait_for_journal(node, "containerd", "END goroutine stack dump", script).ok()?;
        found()
    };
    let (before, first, second) = (found()?, dumped(dump)?, dumped(&format!("sleep 5; {dump}"))?);
    (before < first && first < second).then(|| format!("containerd hangs in {REQUEST}"))
}
