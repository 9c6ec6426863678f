//! Resizes in place on real nodes: raises, cuts, and what a container uses meanwhile.
//!
//! That the stories here end otherwise without the plugin is shown by the control group in `node.rs`.

use anyhow::{Result, ensure};
use integration::cgroup;
use integration::kubelet::{ContainerSpec, Driver, Kubelet, MIB, PodSpec};
use integration::node::Node;
use integration::placement::{self, CONFIG, journal};
use integration::{node_tests, stories};

node_tests!(external: {
    a_container_is_resized_up_and_down_and_a_cut_that_would_kill_is_refused,
    a_limit_that_was_raised_while_the_container_was_down_saves_it,
    page_cache_makes_room_for_a_cut,
    a_container_that_stands_at_memory_high_is_released,
});

/// The defaults.
fn config() -> String {
    String::new()
}

fn a_container_is_resized_up_and_down_and_a_cut_that_would_kill_is_refused(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let mut pod = stories::satisfied(&mut kubelet, node)?;
    let id = pod.container("app")?.id.clone();
    let cpu_max = format!("/sys/fs/cgroup/{}/cpu.max", pod.container("app")?.cgroup);
    for quota in ["30000", "10000", "30000"] {
        node.run(&format!("crictl update --cpu-period 100000 --cpu-quota {quota} {id}"))?;
        assert_eq!(node.read(&cpu_max)?.trim_end(), format!("{quota} 100000"));
    }
    for limit in [300 * MIB, 250 * MIB, 150 * MIB] {
        kubelet.resize(&mut pod, "app", Some(64 * MIB), Some(limit))?;
        let [of_pod, of_container] = stories::memory(node, &pod)?;
        assert_eq!((of_pod.max, of_container.max), (limit, limit));
        assert_eq!(of_container.swap_max, 0, "what the kubelet said of swap stays");
    }

    let before = stories::memory(node, &pod)?;
    let so_far = journal(node, 0)?.len();
    for _ in 0..2 {
        let Err(refused) = stories::cut(&mut kubelet, &mut pod) else { anyhow::bail!("the cut passed") };
        assert!(format!("{refused:#}").contains("would be killed"), "{refused:#}");
    }
    assert_eq!(stories::fate(node, &pod)?, (true, 0));
    assert_eq!(stories::memory(node, &pod)?, before);
    let said = journal(node, so_far)?;
    let said: Vec<_> = said.iter().filter(|line| line.contains("outcome=rejected")).collect();
    ensure!(said.len() == 2, "two refusals expected: {said:#?}");
    for part in ["memory.max", "desired=104857600", "observed=157286400", "usage=", "reclaimable="] {
        assert!(said[0].contains(part), "{part}: {}", said[0]);
    }

    // Once it has freed memory, the same cut passes.
    pod.container("app")?.call(node, "free")?;
    stories::cut(&mut kubelet, &mut pod)?;
    let [of_pod, of_container] = stories::memory(node, &pod)?;
    assert_eq!((of_pod.max, of_container.max), (100 * MIB, 100 * MIB));
    assert_eq!(stories::fate(node, &pod)?, (true, 0));
    let spec = &pod.spec.containers[0];
    let high = (64 * MIB) as f64 + 0.9 * (spec.memory_limit.unwrap_or(0) - 64 * MIB) as f64;
    assert_eq!(of_container.high, high as u64 / 4096 * 4096);
    Ok(())
}

fn a_limit_that_was_raised_while_the_container_was_down_saves_it(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let (pod, answer) = stories::hungry(&mut kubelet, node)?;
    assert!(answer.starts_with("ok"), "{answer}");
    let [of_pod, of_container] = stories::memory(node, &pod)?;
    assert_eq!((of_pod.max, of_container.max), (200 * MIB, 200 * MIB));
    // It lasts.
    node.run("systemctl daemon-reload")?;
    if driver == Driver::Systemd {
        let unit = pod.cgroup.rsplit('/').next().unwrap_or_default();
        node.run(&format!("systemctl set-property --runtime {unit} CPUWeight=77"))?;
    }
    let [of_pod, _] = stories::memory(node, &pod)?;
    assert_eq!(of_pod.max, 200 * MIB);
    Ok(())
}

fn page_cache_makes_room_for_a_cut(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let app = ContainerSpec::new("app").limit(150 * MIB).cpu(2000);
    let mut pod = kubelet.run_pod(PodSpec::new("cached").container(app))?;
    let container = pod.container("app")?.clone();
    assert_eq!(container.call(node, &format!("write /cache {}", 120 * MIB))?, format!("ok {}", 120 * MIB));
    let [usage] = cgroup::usage(node, &[&container.cgroup])?[..] else { unreachable!("one was asked for") };
    assert!(usage.file > 100 * MIB, "{usage:?}");
    kubelet.resize(&mut pod, "app", Some(60 * MIB), Some(60 * MIB))?;
    let [of_pod, of_container] = stories::memory(node, &pod)?;
    assert_eq!((of_pod.max, of_container.max, of_container.high), (60 * MIB, 60 * MIB, cgroup::MAX));
    assert_eq!(cgroup::events(node, &pod.cgroup)?["oom_kill"], 0);
    assert_eq!(container.call(node, "ping")?, "ok");
    Ok(())
}

fn a_container_that_stands_at_memory_high_is_released(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    // The factor puts memory.high where the control group has it.
    let factor = (stories::LINE - 40 * MIB) as f64 / (160 * MIB) as f64;
    node.write_file(CONFIG, format!("memoryThrottlingFactor: {factor}\nthrottleDeadline: 5s\n"), 0o644)?;
    let app = ContainerSpec::new("app").request(40 * MIB).limit(200 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("pinned").container(app))?;
    let [_, of_container] = stories::memory(node, &pod)?;
    assert_eq!(of_container.high, stories::LINE);
    let so_far = journal(node, 0)?.len();
    assert!(stories::goes_beyond(node, &pod, 180)?, "it stands there: {:#?}", journal(node, so_far)?);
    let said = journal(node, so_far)?;
    assert!(said.iter().any(|line| line.contains("released a container")), "{said:#?}");
    let [_, of_container] = stories::memory(node, &pod)?;
    assert!(of_container.high > stories::LINE && of_container.max == 200 * MIB, "{of_container:?}");
    // Back below, it is as before.
    let free = format!("workload call {} free", pod.container("app")?.control);
    placement::wait_for_journal(node, "plimsoll", "which is put back", &free)?;
    cgroup::settle(
        node,
        "",
        &[cgroup::Expected::new(&pod.container("app")?.cgroup, "memory.high", stories::LINE)],
        std::time::Duration::from_millis(400),
        std::time::Duration::from_secs(60),
    )?;
    node.write_file(CONFIG, config(), 0o644)
}
