//! Samples of a status for unit tests.

use crate::report::status::Status;

/// Returns a status that contains these containers. `containers` is JSON.
pub(super) fn status(containers: &str) -> Status {
    let text = format!(
        r#"{{"version": 1, "plimsoll": "0", "cgroups": [], "containers": [{containers}],
        "node": {{"memory": null, "available": null, "allocatable": 1000, "guard": null,
        "podsMax": null, "synchronized": true, "standsAside": false, "requests": 64,
        "limits": 250, "unlimited": 0, "usage": 50}}, "down": []}}"#
    );
    serde_json::from_str(&text).unwrap()
}

/// Returns a container as JSON. Tests choose the amounts in proportion to a limit of 100.
pub(super) fn container(name: &str, usage: u64, min: u64, high: &str, max: &str) -> String {
    let values = format!(r#"{{"min": {min}, "low": 0, "high": {high}, "max": {max}}}"#);
    format!(
        r#"{{"namespace": "default", "pod": "{name}", "uid": "u", "container": "app", "id": "i",
        "cgroup": null, "state": "killed", "class": "Burstable", "request": null, "asked": {max},
        "usage": {usage}, "workingSet": null, "overRequest": 0, "overcommitted": false,
        "desired": {values}, "reasons": {{"min": "", "low": "", "high": ""}},
        "observed": {values}, "effective": null, "standing": null, "stalledSeconds": null,
        "stalledPercent": null, "oomKills": null, "reports": []}}"#
    )
}
