//! Checks the fields and converts them into a configuration.

use plimsoll_core::units::{Bytes, excerpt};

use crate::config::draft::{Draft, DraftReserved};
use crate::config::errors::FieldError;
use crate::config::fields::{
    FIELDS, Field, GUARD, KUBE_CGROUP, KUBE_RESERVED, Mistake, RAISE, RESCUE, SYSTEM_CGROUP,
    SYSTEM_RESERVED,
};
use crate::config::model::Config;
use crate::config::parse::RawConfig;
use crate::config::reserved::{Owner, Reserved};
use crate::yaml::Duplicate;

impl RawConfig {
    /// Converts the fields into a configuration. Reports fields with mistakes, which keep their
    /// defaults.
    pub(super) fn validate(self) -> (Config, Vec<FieldError>) {
        let mut draft = Draft::default();
        let mut errors = Errors::default();
        for Duplicate { field, place, first } in self.duplicates {
            let found = format!("it again after line {}", first.line);
            let mistake = Mistake { expected: "each field once".to_owned(), found };
            errors.add(place.line, &field, mistake);
        }
        for (name, line, value) in self.fields {
            errors.seen.push((name.clone(), line));
            let checked = match FIELDS.iter().find(|field| field.name == name) {
                Some(field) => field.check(&value),
                None => Err(unknown(&name)),
            };
            match checked {
                Ok(values) => {
                    for (field, value) in values {
                        (field.access.set)(&mut draft, value);
                    }
                }
                Err(mistake) => errors.add(line, &name, mistake),
            }
        }
        let Draft { mut config, system, kube } = draft;
        config.reserved.extend(errors.check_reserved(
            system,
            Owner::System,
            &SYSTEM_CGROUP,
            &SYSTEM_RESERVED,
        ));
        config.reserved.extend(errors.check_reserved(
            kube,
            Owner::Kube,
            &KUBE_CGROUP,
            &KUBE_RESERVED,
        ));
        errors.check_guard(&config);
        errors.check_rescue(&config);
        errors.errors.sort_by_key(|error| error.line);
        (config, errors.errors)
    }
}

/// Mistakes found so far, and the lines of the fields.
#[derive(Default)]
struct Errors {
    errors: Vec<FieldError>,
    /// Names of the fields in the file, each with the line where it first occurs.
    seen: Vec<(String, u64)>,
}

impl Errors {
    /// Returns the line of a field, or `None` if the file does not have the field.
    fn line(&self, name: &str) -> Option<u64> {
        self.seen.iter().find(|(seen, _)| seen == name).map(|(_, line)| *line)
    }

    fn add(&mut self, line: u64, field: &str, Mistake { expected, found }: Mistake) {
        self.errors.push(FieldError { line, field: Some(excerpt(field)), expected, found });
    }

    /// Returns the protection of a reserved cgroup. Reports a path without an amount, and an amount
    /// without a path.
    fn check_reserved(
        &mut self,
        draft: DraftReserved,
        owner: Owner,
        cgroup_field: &Field,
        memory_field: &Field,
    ) -> Option<Reserved> {
        let (field, other) = match (draft.cgroup, draft.memory) {
            (Some(cgroup), Some(memory)) => return Some(Reserved { owner, cgroup, memory }),
            (Some(_), None) => (cgroup_field.name, memory_field.name),
            (None, Some(_)) => (memory_field.name, cgroup_field.name),
            (None, None) => return None,
        };
        // If the other field exists but is invalid, the plugin has already reported that field.
        if let (Some(line), None) = (self.line(field), self.line(other)) {
            let (expected, found) = (format!("{other} beside it"), "none".to_owned());
            self.add(line, field, Mistake { expected, found });
        }
        None
    }

    /// Reports a `nodeGuard` that is less than the total protection of the reserved cgroups.
    fn check_guard(&mut self, config: &Config) {
        let reserved = config.reserved_in_all();
        if let (Some(kept), Some(line)) = (config.node_guard, self.line(GUARD.name))
            && kept < reserved
        {
            let expected = format!(
                "at least the sum of {} and {}, {}",
                SYSTEM_RESERVED.name,
                KUBE_RESERVED.name,
                reserved.quantity()
            );
            self.add(line, GUARD.name, Mistake { expected, found: kept.quantity() });
        }
    }

    /// Reports an `oomRescue` that can raise no limit, and an `oomRescue` without `raisePodLimits`.
    fn check_rescue(&mut self, config: &Config) {
        let Some(rescue) = &config.oom_rescue else { return };
        if let Some(line) = self.line(RESCUE.name)
            && rescue.factor <= 1.0
            && rescue.minimum == Bytes::ZERO
        {
            let expected = "a factor above 1, or a minimum above 0".to_owned();
            self.add(line, RESCUE.name, Mistake { expected, found: "neither".to_owned() });
        } else if let (false, Some(line)) = (config.raise_pod_limits, self.line(RAISE.name)) {
            // The limit of a pod also applies to each of its containers, so an OOM rescue must
            // raise both limits.
            let expected = format!("true beside {}, which raises both limits", RESCUE.name);
            self.add(line, RAISE.name, Mistake { expected, found: "false".to_owned() });
        }
    }
}

/// Returns the mistake for a field that does not exist.
fn unknown(name: &str) -> Mistake {
    let expected = match nearest_field(name) {
        Some(nearest) => format!("{nearest} (did you mean that?)"),
        None => {
            let names: Vec<&str> = FIELDS.iter().map(|field| field.name).collect();
            format!("one of {}", names.join(", "))
        }
    };
    Mistake { expected, found: "an unknown field".to_owned() }
}

fn nearest_field(unknown: &str) -> Option<&'static str> {
    FIELDS
        .iter()
        .map(|field| {
            let (name, unknown) = (field.name.to_lowercase(), excerpt(unknown).to_lowercase());
            (strsim::damerau_levenshtein(&name, &unknown), field.name)
        })
        // If more than half of the letters in a short name differ, it is not a typing error.
        .filter(|(distance, name)| *distance <= 4.min(name.len() / 2))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use plimsoll_core::policy::rescue::{Ceiling, OomRescue};

    use super::*;
    use crate::config::brake::Bounds;
    use crate::config::testing::parse;

    #[test]
    fn reserved_cgroups_and_amounts_require_each_other() {
        assert_eq!(
            parse("systemReservedCgroup: /system.slice\nkubeReserved: {memory: 1Gi}").unwrap_err(),
            "f.yaml:1: systemReservedCgroup: expected systemReserved beside it, found none\n\
             f.yaml:2: kubeReserved: expected kubeReservedCgroup beside it, found none"
        );
        // The parser reports an invalid amount once, and does not also report a missing field.
        let error =
            parse("systemReservedCgroup: /system.slice\nsystemReserved: {memory: 0}").unwrap_err();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn node_guard_below_the_reservations_is_refused() {
        let system = "systemReservedCgroup: /system.slice\nsystemReserved: {memory: 500Mi}\n";
        let kube = "kubeReservedCgroup: /kubelet.slice\nkubeReserved: {memory: 1Gi}\n";
        assert_eq!(
            parse(&format!("{system}{kube}nodeGuard: 1500Mi")).unwrap_err(),
            "f.yaml:5: nodeGuard: expected at least the sum of systemReserved and kubeReserved, \
             1524Mi, found 1500Mi"
        );
        assert!(parse(&format!("{system}{kube}nodeGuard: 1524Mi")).is_ok());
        assert_eq!(
            parse("nodeGuard: 0").unwrap_err(),
            "f.yaml:1: nodeGuard: expected a quantity above 0 such as 500Mi, or null, found the \
             number 0"
        );
        assert_eq!(parse("nodeGuard: null"), Ok(Config::default()));
    }

    #[test]
    fn a_rescue_needs_pods_to_be_raised() {
        assert_eq!(
            parse("oomRescue: {}\nraisePodLimits: false").unwrap_err(),
            "f.yaml:2: raisePodLimits: expected true beside oomRescue, which raises both limits, \
             found false"
        );
        assert!(parse("raisePodLimits: false").is_ok());
    }

    #[test]
    fn oom_rescue_accepts_null_or_valid_mapping() {
        assert_eq!(parse("oomRescue: null").unwrap().oom_rescue, None);
        assert_eq!(parse("oomRescue: {}").unwrap().oom_rescue, Some(OomRescue::default()));
        let share = parse("oomRescue: {ceiling: 25%}").unwrap().oom_rescue.unwrap();
        assert_eq!(share.ceiling, Ceiling::Share(25));
        for (text, complaint) in [
            ("on", "expected a mapping such as {kills: 3, ceiling: 1Gi}, or null, found true"),
            ("{kills: 0}", "expected kills: a whole number from 1 to 1000, found the number 0"),
            ("{kills: 1.5}", "expected kills: a whole number from 1 to 1000, found the number 1.5"),
            ("{window: 0s}", "expected window: a time above 0 such as 10m, found '0s'"),
            ("{factor: 0.9}", "expected factor: a number from 1 to 10, found the number 0.9"),
            (
                "{minimum: -1}",
                "expected minimum: a quantity such as 100Mi, or 0, found the number -1",
            ),
            (
                "{ceiling: 0%}",
                "expected ceiling: a quantity above 0, or a share from 1% to 100%, such as 1Gi, \
                 found '0%'",
            ),
            (
                "{ceiling: 101%}",
                "expected ceiling: a quantity above 0, or a share from 1% to 100%, such as 1Gi, \
                 found '101%'",
            ),
            (
                "{factor: 1, minimum: 0}",
                "expected a factor above 1, or a minimum above 0, found neither",
            ),
            (
                "{kill: 3}",
                "expected no other fields than kills, window, factor, minimum, ceiling, found \
                 'kill'",
            ),
        ] {
            let error = parse(&format!("oomRescue: {text}")).unwrap_err();
            assert_eq!(error, format!("f.yaml:1: oomRescue: {complaint}"), "{text}");
        }
        assert!(
            parse("shrink: never\nshrinkDeadline: null")
                .unwrap_err()
                .contains("f.yaml:2: shrinkDeadline: expected a time")
        );
    }

    #[test]
    fn the_brake_has_bounds_or_is_off() {
        assert_eq!(parse("").unwrap().brake, Some(Bounds::default()));
        assert_eq!(parse("brake: null").unwrap().brake, None);
        assert_eq!(
            parse("brake: {kills: 1}").unwrap().brake,
            Some(Bounds { kills: 1, ..Bounds::default() })
        );
        for (text, complaint) in [
            ("on", "expected a mapping such as {repairs: 500}, or null, found true"),
            ("{kills: 0}", "expected kills: a whole number from 1 to 1000000, found the number 0"),
            (
                "{repairs: 1e7}",
                "expected repairs: a whole number from 1 to 1000000, found the number 10000000",
            ),
            ("{window: 0s}", "expected window: a time above 0 such as 10m, found '0s'"),
            ("{window: null}", "expected window: a time above 0 such as 10m, found nothing (null)"),
            (
                "{kill: 3}",
                "expected no other fields than repairs, conflicts, kills, window, found 'kill'",
            ),
        ] {
            let error = parse(&format!("brake: {text}")).unwrap_err();
            assert_eq!(error, format!("f.yaml:1: brake: {complaint}"), "{text}");
        }
    }
}
