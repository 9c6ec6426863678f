//! Compares a real node without the plugin and a real node with the plugin.
//!
//! The demo runs pods of each QoS class and shows the memory values that the kernel has for these
//! pods. Then the demo shows the outcomes of in-place resizes that caused problems for users.

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
const CONFIG: &str = "memoryThrottlingFactor: 0.9\n\
    memoryReservationPolicy: HardReservation\nnodeAllocatable: auto\n";

/// Shows the memory values and the outcomes of resizes on two nodes: without and with the plugin
///
/// The demo shows the values that the kernel holds for pods of each class. The demo compares each
/// value with the formula of Kubernetes and marks the value as right (=) or WRONG.
#[derive(Parser)]
struct Arguments {
    /// Keep the node with the plugin and its pods, and print the command that opens a shell on it
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    // Both nodes run at the same time, but the results of each node are printed together.
    let (node, wrong) = thread::scope(|scope| {
        let with = scope.spawn(|| with_plugin(arguments.keep));
        println!("{}", without_plugin()?);
        let (node, shown, wrong) = with
            .join()
            .map_err(|_| anyhow!("the thread of the node with the plugin panicked"))??;
        println!("{shown}");
        anyhow::Ok((node, wrong))
    })?;
    println!(
        "{} in {:.0} s.",
        if wrong == 0 {
            "All values and outcomes are right".to_owned()
        } else {
            format!("{wrong} values or outcomes are WRONG")
        },
        started.elapsed().as_secs_f64()
    );
    if arguments.keep {
        println!(
            "\nThe node keeps running. To open a shell:\n    {}\nTo end the node:\n    kill {}",
            node.ssh_command(),
            node.process_id()
        );
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the demo without the plugin and returns the text to print.
fn without_plugin() -> Result<String> {
    let node = Node::start(Runtime::Containerd21)?;
    let versions = Image::obtain(Runtime::Containerd21)?.versions()?;
    kubelet::clear(&node)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let (table, _) = run(&node, &mut kubelet, |_, _| None)?;
    let (resizes, _) = resizes(&node, &mut kubelet, false)?;
    Ok(format!(
        "\nVersions on the nodes:\n{}\n\nWithout the plugin:\n\n{table}\n\n\
         Resizes without the plugin:\n\n{resizes}",
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
        building.join().map_err(|_| anyhow!("the thread that builds the plugin panicked"))??;
        node
    })?;
    kubelet::clear(&node)?;
    progress("installing the plugin, which containerd launches");
    placement::install(&node, Mode::Launched, CONFIG)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let (table, wrong_values) =
        run(&node, &mut kubelet, |kubelet, case| Some(expected(kubelet, case)))?;
    let (resizes, wrong_stories) = resizes(&node, &mut kubelet, true)?;
    drop(kubelet);
    let shown = format!(
        "\nWith the plugin, which containerd launches, and this configuration:\n{}\n\n{table}\n\
         Values are in bytes. = means equal to the formula. WRONG precedes the expected value.\n\
         \nResizes with the plugin:\n\n{resizes}",
        indent(CONFIG)
    );
    Ok((node, shown, wrong_values + wrong_stories))
}

/// Returns the lines, each indented by four spaces.
fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
