//! Conversion of fields into a configuration.

use std::net::SocketAddr;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::ReservationPolicy;
use plimsoll_core::units::{Bytes, excerpt};

use crate::config::choices::{LogLevel, Mode, Shrink};
use crate::config::errors::FieldError;
use crate::config::model::Config;
use crate::config::names::*;
use crate::config::parse::RawConfig;
use crate::config::reserved::{Owner, Reserved};
use crate::config::value::RawValue;

impl RawConfig {
    /// Converts the fields into a configuration. Fields with mistakes are reported and keep their
    /// defaults.
    pub(super) fn validate(self) -> (Config, Vec<FieldError>) {
        let mut config = Config::default();
        let mut errors = Vec::new();
        let mut seen: Vec<(String, u64)> = Vec::new();
        let mut cgroups: Vec<(&str, CgroupPath)> = Vec::new();
        let mut amounts: Vec<(&str, Bytes)> = Vec::new();
        for (key, value) in self.0 {
            let (field, line) = (key.value, key.referenced.line().max(1));
            let mut wrong = |expected: String, found: String| {
                errors.push(FieldError { line, field: Some(excerpt(&field)), expected, found });
            };
            if let Some((_, first)) = seen.iter().find(|(name, _)| *name == field) {
                wrong("each field once".to_owned(), format!("it again after line {first}"));
                continue;
            }
            let value = value.value;
            match field.as_str() {
                MODE => match value.one_of(Mode::ALL) {
                    Some(mode) => config.mode = mode,
                    None => wrong("enforce or observe".to_owned(), value.to_string()),
                },
                THROTTLING => match value.throttling() {
                    Some(throttling) => config.policy.throttling = throttling,
                    None => wrong("a number above 0 and at most 1, or null".to_owned(), value.to_string()),
                },
                RESERVATION => match value.one_of(ReservationPolicy::ALL) {
                    Some(reservation) => config.policy.reservation = reservation,
                    None => wrong("None, TieredReservation or HardReservation".to_owned(), value.to_string()),
                },
                ALLOCATABLE => match value.node_allocatable() {
                    Some(allocatable) => config.node_allocatable = allocatable,
                    None => wrong("auto, or a quantity above 0 such as 60Gi".to_owned(), value.to_string()),
                },
                HEADROOM => match value.quantity() {
                    Some(headroom) => config.policy.headroom = headroom,
                    None => wrong("a quantity such as 2Mi, or 0".to_owned(), value.to_string()),
                },
                SYSTEM_CGROUP | KUBE_CGROUP => match value.cgroup() {
                    Some(cgroup) => {
                        cgroups.push((if field == KUBE_CGROUP { KUBE_CGROUP } else { SYSTEM_CGROUP }, cgroup))
                    }
                    None => wrong(
                        "the path of a cgroup, such as /system.slice, beneath the root and without . or ..".to_owned(),
                        value.to_string(),
                    ),
                },
                SYSTEM_RESERVED | KUBE_RESERVED => match value.memory() {
                    Some(amount) => {
                        amounts.push((if field == KUBE_RESERVED { KUBE_RESERVED } else { SYSTEM_RESERVED }, amount));
                    }
                    None => wrong(
                        "a mapping with a quantity above 0, such as {memory: 500Mi}".to_owned(),
                        value.to_string(),
                    ),
                },
                GUARD => match value {
                    RawValue::Null => config.node_guard = None,
                    value => match value.quantity() {
                        Some(kept) if kept > Bytes::ZERO => config.node_guard = Some(kept),
                        _ => wrong("a quantity above 0 such as 500Mi, or null".to_owned(), value.to_string()),
                    },
                },
                DEADLINE => match value.duration() {
                    Some(deadline) => config.throttle_deadline = deadline,
                    None => wrong("a time above 0 such as 30s or 2m, or null".to_owned(), value.to_string()),
                },
                SHRINK => match value.one_of(Shrink::ALL) {
                    Some(shrink) => config.shrink = shrink,
                    None => wrong("reject, defer or allow".to_owned(), value.to_string()),
                },
                SHRINK_DEADLINE => match value.duration() {
                    Some(Some(deadline)) => config.shrink_deadline = deadline,
                    _ => wrong("a time above 0 such as 10m".to_owned(), value.to_string()),
                },
                RESCUE => match value.oom_rescue() {
                    Ok(rescue) => config.oom_rescue = rescue,
                    Err((expected, found)) => wrong(expected, found),
                },
                RAISE | REPAIR | CONTAINER_METRICS => match value {
                    RawValue::Bool(is_so) => match field.as_str() {
                        RAISE => config.raise_pod_limits = is_so,
                        REPAIR => config.repair = is_so,
                        _ => config.container_metrics = is_so,
                    },
                    value => wrong("true or false".to_owned(), value.to_string()),
                },
                BRAKE => match value.brake() {
                    Ok(brake) => config.brake = brake,
                    Err((expected, found)) => wrong(expected, found),
                },
                RATIO => match value {
                    RawValue::Null => config.max_limit_request_ratio = None,
                    RawValue::Number { value: ratio, .. } if (1.0..=1e9).contains(&ratio) => {
                        config.max_limit_request_ratio = Some(ratio);
                    }
                    value => wrong("a number of at least 1, or null".to_owned(), value.to_string()),
                },
                METRICS_ADDRESS => match &value {
                    RawValue::Null => config.metrics_address = None,
                    RawValue::Text(text) if text.parse::<SocketAddr>().is_ok() => {
                        config.metrics_address = text.parse().ok();
                    }
                    value => {
                        wrong("an address and a port such as 127.0.0.1:9477, or null".to_owned(), value.to_string())
                    }
                },
                KUBECONFIG => match &value {
                    RawValue::Null => config.kubeconfig = None,
                    RawValue::Text(text) if text.starts_with('/') && !text.contains('\0') => {
                        config.kubeconfig = Some(text.into());
                    }
                    value => wrong(
                        "an absolute path such as /etc/plimsoll/kubeconfig, or null".to_owned(),
                        value.to_string(),
                    ),
                },
                LOG_LEVEL => match value.one_of(LogLevel::ALL) {
                    Some(level) => config.log_level = level,
                    None => wrong("error, warn, info, debug or trace".to_owned(), value.to_string()),
                },
                unknown => {
                    let expected = match nearest_field(unknown) {
                        Some(nearest) => format!("{nearest} (did you mean that?)"),
                        None => format!("one of {}", FIELDS.join(", ")),
                    };
                    wrong(expected, "an unknown field".to_owned());
                }
            }
            seen.push((field, line));
        }
        for owner in Owner::ALL {
            let (cgroup_field, memory_field) = owner.fields();
            let cgroup = cgroups.iter().find(|(field, _)| *field == cgroup_field);
            let memory = amounts.iter().find(|(field, _)| *field == memory_field);
            let line =
                |field: &str| seen.iter().find(|(name, _)| name == field).map(|(_, line)| *line);
            let mut alone = |field: &str, other: &str| {
                // If the other field exists but is invalid, its own mistake is already reported.
                if let (Some(line), None) = (line(field), line(other)) {
                    let (field, found) = (Some(field.to_owned()), "none".to_owned());
                    errors.push(FieldError {
                        line,
                        field,
                        expected: format!("{other} beside it"),
                        found,
                    });
                }
            };
            match (cgroup, memory) {
                (Some((_, cgroup)), Some((_, memory))) => {
                    config.reserved.push(Reserved {
                        owner,
                        cgroup: cgroup.clone(),
                        memory: *memory,
                    });
                }
                (Some(_), None) => alone(cgroup_field, memory_field),
                (None, Some(_)) => alone(memory_field, cgroup_field),
                (None, None) => {}
            }
        }
        let reserved = config.reserved_in_all();
        if let (Some(kept), Some((_, line))) =
            (config.node_guard, seen.iter().find(|(name, _)| name == GUARD))
            && kept < reserved
        {
            errors.push(FieldError {
                line: *line,
                field: Some(GUARD.to_owned()),
                expected: format!(
                    "at least what {SYSTEM_RESERVED} and {KUBE_RESERVED} add up to, {}",
                    reserved.quantity()
                ),
                found: kept.quantity(),
            });
        }
        if let (Some(_), false, Some((_, line))) = (
            &config.oom_rescue,
            config.raise_pod_limits,
            seen.iter().find(|(name, _)| name == RAISE),
        ) {
            // A pod's limit also bounds its containers, so a rescue must raise both limits.
            let (expected, found) =
                (format!("true beside {RESCUE}, which raises both limits"), "false".to_owned());
            errors.push(FieldError { line: *line, field: Some(RAISE.to_owned()), expected, found });
        }
        errors.sort_by_key(|error| error.line);
        (config, errors)
    }
}

fn nearest_field(unknown: &str) -> Option<&'static str> {
    FIELDS
        .into_iter()
        .map(|field| {
            (
                strsim::damerau_levenshtein(
                    &field.to_lowercase(),
                    &excerpt(unknown).to_lowercase(),
                ),
                field,
            )
        })
        // A difference of more than half of a short name is not a typing error.
        .filter(|(distance, field)| *distance <= 4.min(field.len() / 2))
        .min()
        .map(|(_, field)| field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::parse;

    #[test]
    fn a_reserved_cgroup_without_its_amount_is_a_mistake_and_so_is_the_reverse() {
        assert_eq!(
            parse("systemReservedCgroup: /system.slice\nkubeReserved: {memory: 1Gi}").unwrap_err(),
            "f.yaml:1: systemReservedCgroup: expected systemReserved beside it, found none\n\
             f.yaml:2: kubeReserved: expected kubeReservedCgroup beside it, found none"
        );
        // An invalid amount is reported once, not also as a missing field.
        let error =
            parse("systemReservedCgroup: /system.slice\nsystemReserved: {memory: 0}").unwrap_err();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn what_is_kept_from_pods_is_at_least_what_is_promised_beside_them() {
        let system = "systemReservedCgroup: /system.slice\nsystemReserved: {memory: 500Mi}\n";
        let kube = "kubeReservedCgroup: /kubelet.slice\nkubeReserved: {memory: 1Gi}\n";
        assert_eq!(
            parse(&format!("{system}{kube}nodeGuard: 1500Mi")).unwrap_err(),
            "f.yaml:5: nodeGuard: expected at least what systemReserved and kubeReserved add up to, 1524Mi, found 1500Mi"
        );
        assert!(parse(&format!("{system}{kube}nodeGuard: 1524Mi")).is_ok());
        assert_eq!(
            parse("nodeGuard: 0").unwrap_err(),
            "f.yaml:1: nodeGuard: expected a quantity above 0 such as 500Mi, or null, found the number 0"
        );
        assert_eq!(parse("nodeGuard: null"), Ok(Config::default()));
    }

    #[test]
    fn a_rescue_needs_pods_to_be_raised() {
        assert_eq!(
            parse("oomRescue: {}\nraisePodLimits: false").unwrap_err(),
            "f.yaml:2: raisePodLimits: expected true beside oomRescue, which raises both limits, found false"
        );
        assert!(parse("raisePodLimits: false").is_ok());
    }
}
