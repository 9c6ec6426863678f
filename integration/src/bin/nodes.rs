//! Makes what the tests on nodes need and what takes long on a new machine: `hack/check` starts it while the compiler is at work.

use integration::cache::progress;
use integration::node::Node;
use integration::runtime::Runtime;
use integration::{apiserver, peers, placement};

fn main() -> anyhow::Result<()> {
    // One after the other: each of them uses all processors while it is built. First what most of the tests need: they need not wait for
    // the rest.
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
    apiserver::prepare()?;
    others.into_iter().try_for_each(node)?;
    peers::prepare()
}
