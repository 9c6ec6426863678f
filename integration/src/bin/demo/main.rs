//! A demonstration of the plugin's main job on a real node, without and with the plugin.
//!
//! The demo runs pods of each QoS class and shows the memory values that the kernel holds for them.
//! Then it shows the outcomes of in-place resizes that caused problems for users.

mod resizes;
mod values;

use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Parser;
use integration::image::Image;
use integration::kubelet::{self, Kubelet};
use integration::machine::Node;
use integration::placement::{self, Mode};
use integration::runtime::{Driver, Runtime};
use integration::tools::progress::progress;

use crate::resizes::resizes;
use crate::values::{expected, run};

/// The plugin's configuration in the demo. All values are the defaults.
const CONFIG: &str = "memoryThrottlingFactor: 0.9\nmemoryReservationPolicy: HardReservation\nnodeAllocatable: auto\n";

/// Boots a throwaway node, runs pods of each class on it, and shows the memory values that the kernel holds for them:
/// first without the plugin, then with it, each value marked right (=) or wrong against the formula. Then it tells what becomes
/// of containers that are resized, likewise.
#[derive(Parser)]
struct Arguments {
    /// Leave the node up at the end, with pods and plugin, and say how to get in.
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    // Both nodes run at the same time, but their results are printed one after the other.
    let (node, wrong) = thread::scope(|scope| {
        let with = scope.spawn(|| with_plugin(arguments.keep));
        println!("{}", without_plugin()?);
        let (node, shown, wrong) =
            with.join().map_err(|_| anyhow!("the node with the plugin: a panic"))??;
        println!("{shown}");
        anyhow::Ok((node, wrong))
    })?;
    println!(
        "{} in {:.0} s.",
        if wrong == 0 {
            "All of it is right".to_owned()
        } else {
            format!("{wrong} of it are WRONG")
        },
        started.elapsed().as_secs_f64()
    );
    if arguments.keep {
        println!(
            "\nThe node is up. To get in:\n    {}\nTo end it:\n    kill {}",
            node.ssh_command(),
            node.process_id()
        );
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn without_plugin() -> Result<String> {
    let node = Node::start(Runtime::Containerd21)?;
    let versions = Image::obtain(Runtime::Containerd21)?.versions()?;
    kubelet::clear(&node)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let (table, _) = run(&node, &mut kubelet, |_, _| None)?;
    let (resizes, _) = resizes(&node, &mut kubelet, false)?;
    Ok(format!(
        "\nThe nodes, virtual machines:\n{}\n\nWithout the plugin:\n\n{table}\n\nResizes without the plugin:\n\n{resizes}",
        indent(&versions)
    ))
}

/// Runs the demo with the plugin.
///
/// Returns the node, the text to print and the number of wrong values.
fn with_plugin(keep: bool) -> Result<(Node, String, usize)> {
    let node = thread::scope(|scope| {
        let building = scope.spawn(|| {
            progress("building the plugin");
            placement::build()
        });
        let node = if keep {
            Node::start_kept(Runtime::Containerd21)
        } else {
            Node::start(Runtime::Containerd21)
        };
        building.join().map_err(|_| anyhow!("building the plugin: a panic"))??;
        node
    })?;
    kubelet::clear(&node)?;
    progress("installing the plugin, to be launched by containerd");
    placement::install(&node, Mode::Launched, CONFIG)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let (table, wrong_values) =
        run(&node, &mut kubelet, |kubelet, case| Some(expected(kubelet, case)))?;
    let (resizes, wrong_stories) = resizes(&node, &mut kubelet, true)?;
    drop(kubelet);
    let shown = format!(
        "\nWith the plugin, launched by containerd and configured so:\n{}\n\n{table}\n\
         Values in bytes. = as the formula says; anything else is marked WRONG with the value expected.\n\
         \nResizes with the plugin:\n\n{resizes}",
        indent(CONFIG)
    );
    Ok((node, shown, wrong_values + wrong_stories))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
