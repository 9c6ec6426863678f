//! Draws the memory usage and limits of containers over time, recorded on a real node.
//!
//! One picture shows a limit decrease that the plugin refuses. The other picture shows a container
//! that the plugin rescues from repeated OOM kills. If the events differ from the expected events,
//! the program fails and writes no picture.

mod chart;
mod scenes;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use integration::kubelet;
use integration::machine::Node;
use integration::placement::{self, Mode};
use integration::runtime::Runtime;
use integration::tools::progress::progress;

use crate::chart::draw;
use crate::scenes::{killing_decrease, refused_decrease, rescued_loop};

/// The plugin's configuration: a limit increase after every second OOM kill.
///
/// The increase is 30 MiB instead of the default, because the container is small.
const RESCUE: &str = "oomRescue: {kills: 2, factor: 1.2, minimum: 30Mi, ceiling: 200Mi}\n";

fn main() -> Result<()> {
    progress("building the plugin");
    placement::build()?;
    let node = Node::start(Runtime::Containerd21)?;

    progress("a limit decrease below the usage, without the plugin");
    kubelet::clear(&node)?;
    let killed = killing_decrease(&node).context("the limit decrease without the plugin")?;
    kubelet::clear(&node)?;
    placement::install(&node, Mode::External, "")?;
    progress("the same limit decrease with the plugin");
    let refused = refused_decrease(&node).context("the limit decrease with the plugin")?;
    progress("repeated OOM kills");
    kubelet::clear(&node)?;
    placement::configure(&node, RESCUE)?;
    let rescued = rescued_loop(&node).context("the repeated OOM kills")?;

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("plots");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    for (name, panels) in
        [("rejected-cut.svg", &[refused, killed][..]), ("rescued-loop.svg", &[rescued])]
    {
        let path = directory.join(name);
        fs::write(&path, draw(panels)?).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
