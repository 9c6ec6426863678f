//! Makes what the tests on nodes need and what takes long on a new machine: `hack/check` starts it while the compiler is at work.

use integration::cache::progress;
use integration::node::Node;
use integration::runtime::Runtime;
use integration::{apiserver, peers, placement};

fn main() -> anyhow::Result<()> {
    // One after the other: each of them uses all processors while it is built.
    for runtime in Runtime::ALL {
        Node::prepare(runtime)?;
        progress(&format!("the {runtime} node can be started"));
    }
    apiserver::prepare()?;
    peers::prepare()?;
    placement::build().map(|_| ())
}
