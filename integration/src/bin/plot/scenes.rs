//! Records the events for the charts, and checks that the expected events happened.

use anyhow::{Context, Result, bail, ensure};
use integration::kubelet::{ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::Node;
use integration::probe::crictl;
use integration::runtime::Driver;
use integration::stories;
use integration::stories::recording::{self, Recorder, Sample};

use crate::chart::{Note, Panel};

/// The limits in MiB of the container in the OOM loop: the first limit and the raised limits.
const LOOP_LIMITS: [u64; 3] = [60, 90, 120];

/// The memory in MiB that the container in the OOM loop needs.
const LOOP_NEEDS: u64 = 104;

/// The size of one allocation in MiB.
const STEP: u64 = 4;

/// Makes the container allocate `mib` MiB step by step.
///
/// Returns whether all allocations succeeded.
fn grow(node: &Node, pod: &Pod, mib: u64) -> Result<bool> {
    const GONE: i32 = 3;
    let output = node.try_run(&format!(
        "for _ in $(seq {}); do
             workload call {} alloc {} >/dev/null || exit {GONE}; sleep 0.05
         done",
        mib / STEP,
        pod.container("app")?.control,
        STEP * MIB
    ))?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(GONE) => Ok(false),
        _ => bail!("allocating {mib} MiB ({}): {}", output.status, output.stderr.trim_end()),
    }
}

/// Waits, so that the chart shows a period without events.
fn wait(node: &Node, seconds: f64) -> Result<()> {
    node.run(&format!("sleep {seconds}")).map(|_| ())
}

/// Decreases the limit below the usage without the plugin: the kernel kills the container.
pub(crate) fn killing_decrease(node: &Node) -> Result<Panel> {
    let mut kubelet = Kubelet::start(node, Driver::Systemd)?;
    let mut pod = kubelet.run_pod(stories::ample_pod())?;
    let recorder = Recorder::start(node, &kubelet, &pod)?;
    ensure!(
        grow(node, &pod, stories::NEEDS / MIB)?,
        "the container was killed before the limit decrease"
    );
    wait(node, 1.0)?;
    let asked = recorder.now()?;
    // Ignore the runtime's answer, because it depends on timing. The runtime reports success or an
    // error about the missing container.
    let _ = stories::decrease_limit(&mut kubelet, &mut pod);
    wait(node, 6.0)?;
    let samples = recorder.stop()?;
    let &[killed] = recording::kills(&samples).as_slice() else {
        bail!("the recording must have one OOM kill")
    };
    ensure!(killed > asked, "the container was killed before the limit decrease");
    let (lives, _) = stories::read_fate(node, &pod)?;
    ensure!(!lives, "the container must be killed, but lives");
    let notes =
        vec![Note::after(killed, 75, "limit of 100 MiB asked for:\nkilled by the kernel (OOM)")];
    Ok(Panel { title: "The same without Plimsoll", top: 275, samples, notes })
}

/// Decreases the limit below the usage with the plugin: the plugin refuses until memory is free.
pub(crate) fn refused_decrease(node: &Node) -> Result<Panel> {
    let mut kubelet = Kubelet::start(node, Driver::Systemd)?;
    let mut pod = kubelet.run_pod(stories::ample_pod())?;
    let recorder = Recorder::start(node, &kubelet, &pod)?;
    ensure!(
        grow(node, &pod, stories::NEEDS / MIB)?,
        "the container was killed before the limit decrease"
    );
    wait(node, 1.0)?;
    let before = stories::memory(node, &pod)?;
    let asked = recorder.now()?;
    let Err(refused) = stories::decrease_limit(&mut kubelet, &mut pod) else {
        bail!("the limit decrease must be refused, but succeeded")
    };
    let refused = crictl::reason(&refused);
    ensure!(
        refused.contains("would be killed"),
        "the limit decrease was refused for another reason: {refused}"
    );
    ensure!(
        stories::memory(node, &pod)? == before,
        "the refused limit decrease changed memory values"
    );
    ensure!(grow(node, &pod, 16)?, "the container was killed after the refused limit decrease");
    wait(node, 3.0)?;
    let freed = recorder.now()?;
    let answer = pod.container("app")?.call(node, "free")?;
    ensure!(answer.starts_with("ok"), "the workload must free its memory, but answered {answer:?}");
    wait(node, 1.5)?;
    let again = recorder.now()?;
    stories::decrease_limit(&mut kubelet, &mut pod)
        .context("decreasing the limit of a container that freed memory")?;
    ensure!(
        stories::memory(node, &pod)?.iter().all(|memory| memory.max == 100 * MIB),
        "the limit decrease succeeded, but memory.max is not 100 MiB"
    );
    wait(node, 0.5)?;
    ensure!(grow(node, &pod, 64)?, "the container was killed after the limit decrease");
    wait(node, 2.0)?;
    let fate = stories::read_fate(node, &pod)?;
    ensure!(fate == (true, 0), "the container must live without OOM kills, but: {fate:?}");
    let samples = recorder.stop()?;
    let set = find_new_limit(&samples, again)?;
    // The text after the semicolon is advice to the user and not part of the reason.
    let reason = refused.split(';').next().unwrap_or_default();
    let notes = vec![
        Note::after(
            asked,
            216,
            format!("limit of 100 MiB asked for; refused:\n{}", wrap(reason, 36)),
        ),
        Note::after(freed, 75, "frees its\nmemory"),
        Note::after(set, 212, "limit of 100 MiB\nasked for; set"),
    ];
    Ok(Panel { title: "With Plimsoll", top: 275, samples, notes })
}

/// Returns the time of the first sample with the new limit. Fails if the limit changed before the
/// time `again`.
fn find_new_limit(samples: &[Sample], again: u64) -> Result<u64> {
    let limits =
        samples.iter().filter(|sample| sample.at < again).filter_map(|sample| sample.container);
    ensure!(
        limits.map(|level| level.max).all(|max| max == 250 * MIB),
        "memory.max changed before the second limit decrease"
    );
    let set =
        samples.iter().find(|sample| sample.container.is_some_and(|level| level.max == 100 * MIB));
    Ok(set.context("no sample has the new limit")?.at)
}

/// Runs a container that is OOM-killed repeatedly until the plugin has raised its limit twice.
pub(crate) fn rescued_loop(node: &Node) -> Result<Panel> {
    let mut kubelet = Kubelet::start(node, Driver::Systemd)?;
    let app = ContainerSpec::new("app").request(32 * MIB).limit(LOOP_LIMITS[0] * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("looping").container(app.clone()))?;
    let recorder = Recorder::start(node, &kubelet, &pod)?;
    let [first, second, enough] = LOOP_LIMITS;
    for (limit, fits) in
        [(first, false), (first, false), (second, false), (second, false), (enough, true)]
    {
        let has = stories::memory(node, &pod)?[1].max;
        ensure!(has == limit * MIB, "memory.max must be {limit} MiB, but is {has} bytes");
        let has_all = grow(node, &pod, LOOP_NEEDS)?;
        ensure!(
            has_all == fits,
            "with {limit} MiB, success of all allocations must be {fits}, but is {has_all}"
        );
        if fits {
            break;
        }
        kubelet.remove_container(&mut pod, "app")?;
        kubelet.run_container(&mut pod, &app)?;
    }
    wait(node, 4.0)?;
    ensure!(stories::read_fate(node, &pod)?.0, "the container must live at the end");
    let samples = recorder.stop()?;
    let (kills, raises) = (recording::kills(&samples), recording::raises(&samples));
    ensure!(kills.len() == 4, "the recording must have 4 OOM kills, but has {}", kills.len());
    let raised: Vec<u64> = raises.iter().map(|(_, limit)| limit / MIB).collect();
    ensure!(
        raised == LOOP_LIMITS[1..],
        "the pod's limit must be raised to {:?} MiB, but was raised to {raised:?}",
        &LOOP_LIMITS[1..]
    );
    let killed = kills.iter().map(|at| Note::before(*at, 20, "killed"));
    let raised = raises.iter().map(|(at, limit)| {
        let limit = limit / MIB;
        Note::after(*at, limit + 22, format!("Plimsoll raises\nthe limit to {limit} MiB"))
    });
    let notes = killed.chain(raised).collect();
    Ok(Panel {
        title: "A container that needs 104 MiB, oomRescue after two kills",
        top: 155,
        samples,
        notes,
    })
}

/// Breaks text between words into lines of at most `width` bytes. Longer words stay whole.
fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("a bc def ghijkl m", 5), "a bc\ndef\nghijkl\nm");
    }
}
