//! Starts nodes, from a snapshot if possible.

use std::time::Instant;

use anyhow::Result;

use crate::image::Image;
use crate::machine::node::Node;
use crate::machine::options::{Equipment, Lifetime, Start};
use crate::machine::retry::retry;
use crate::machine::snapshot::snapshot;
use crate::runtime::Runtime;
use crate::tools::progress::progress;

impl Node {
    /// Starts a node from the snapshot in the cache. Makes the snapshot first if the cache has
    /// none.
    pub fn start(runtime: Runtime) -> Result<Node> {
        Node::start_in(runtime, Lifetime::Process)
    }

    /// Starts a node that keeps running after this value is dropped and after this process ends.
    ///
    /// [`Node::ssh_command`] returns the command that opens a shell on the node.
    pub fn start_kept(runtime: Runtime) -> Result<Node> {
        let mut node = Node::start_in(runtime, Lifetime::Kept)?;
        node.machine.kept = true;
        node.machine.dir.kept = true;
        Ok(node)
    }

    /// Boots a node with additional equipment. An equipped node has no snapshot.
    pub fn boot(runtime: Runtime, equipment: &Equipment) -> Result<Node> {
        let image = Image::obtain(runtime)?;
        retry(&format!("booting the {runtime} node"), |_| {
            Node::launch(runtime, &image, Start::Equipped(equipment), Lifetime::Process)
        })
    }

    /// Makes the image and the snapshot, so that later starts take only seconds.
    pub fn prepare(runtime: Runtime) -> Result<()> {
        snapshot(runtime, &Image::obtain(runtime)?).map(|_| ())
    }

    fn start_in(runtime: Runtime, lifetime: Lifetime) -> Result<Node> {
        let image = Image::obtain(runtime)?;
        let snapshot = snapshot(runtime, &image)?;
        retry(&format!("starting the {runtime} node"), |attempt| {
            let started = Instant::now();
            // Load the snapshot only in the first attempt, because the snapshot itself may be
            // broken.
            let start = if attempt == 1 { Start::Load(&snapshot) } else { Start::Boot };
            let node = Node::launch(runtime, &image, start, lifetime)?;
            progress(&format!(
                "{runtime} node ready after {:.1} s",
                started.elapsed().as_secs_f64()
            ));
            Ok(node)
        })
    }
}
