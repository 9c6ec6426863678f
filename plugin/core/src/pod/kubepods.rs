//! Names of the cgroups above the pods: the cgroup of all pods, and the cgroups of the QoS classes.

use super::path::CgroupPath;

/// Returns whether the kubelet gives this name to the cgroup of all pods.
pub fn is_kubepods(name: &str) -> bool {
    match name.strip_suffix(".slice") {
        Some(stem) => stem == "kubepods" || stem.ends_with("-kubepods"),
        None => name == "kubepods",
    }
}

/// Returns the cgroups of the Burstable and the BestEffort pods. Both are children of the cgroup of
/// all pods.
pub fn classes(kubepods: &CgroupPath) -> impl Iterator<Item = CgroupPath> {
    let stem = kubepods.name().strip_suffix(".slice");
    ["burstable", "besteffort"].into_iter().filter_map(move |class| match stem {
        Some(stem) => kubepods.join(&format!("{stem}-{class}.slice")),
        None => kubepods.join(class),
    })
}

/// Returns whether this cgroup contains all pods, or all pods of a QoS class.
pub fn is_above_pods(cgroup: &CgroupPath) -> bool {
    let is_class_of = |kubepods: &CgroupPath| {
        is_kubepods(kubepods.name()) && classes(kubepods).any(|class| class == *cgroup)
    };
    is_kubepods(cgroup.name()) || cgroup.parent().as_ref().is_some_and(is_class_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_the_names_of_their_driver() {
        let classes = |path: &str| {
            let kubepods = CgroupPath::parse(path).unwrap();
            classes(&kubepods).map(|class| class.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(classes("a/kubepods"), ["/a/kubepods/burstable", "/a/kubepods/besteffort"]);
        let slice = "a.slice/a-kubepods.slice";
        let expected =
            ["burstable", "besteffort"].map(|class| format!("/{slice}/a-kubepods-{class}.slice"));
        assert_eq!(classes(slice), expected);
        let is_above = |path: &str| is_above_pods(&CgroupPath::parse(path).unwrap());
        for above in [
            "kubepods",
            "a/kubepods/burstable",
            slice,
            &format!("{slice}/a-kubepods-besteffort.slice"),
        ] {
            assert!(is_above(above), "{above}");
        }
        for not in [
            "a",
            "kubepods/pod1",
            "kubepods/burstable/pod1",
            "burstable",
            "a/burstable",
            "system.slice",
        ] {
            assert!(!is_above(not), "{not}");
        }
    }
}
