//! Prepares the parts of the node tests that take long on a new machine.
//!
//! `hack/check` starts this program while the compiler works.

use integration::machine::Node;
use integration::placement::peers;
use integration::runtime::Runtime;
use integration::tools::progress::progress;
use integration::{cluster, placement};

fn main() -> anyhow::Result<()> {
    // Prepare only one part at a time, because each build uses all processors. Prepare the parts
    // that most tests need first, so that these tests can start early.
    let node = |runtime| {
        Node::prepare(runtime)?;
        progress(&format!("the {runtime} node can be started"));
        anyhow::Ok(())
    };
    let (first, others): (Vec<_>, Vec<_>) = Runtime::ALL
        .into_iter()
        .partition(|runtime| matches!(runtime, Runtime::Crio136 | Runtime::Containerd17));
    first.into_iter().try_for_each(node)?;
    placement::build()?;
    cluster::prepare()?;
    others.into_iter().try_for_each(node)?;
    peers::prepare()
}
