//! Table of the fields: the only definition of their names, documentation, types, ranges, defaults
//! and examples.
//!
//! The parser and the printer of configurations use the table. The table also determines four
//! texts: the help of `plimsoll check`, the output of `plimsoll config default`, the schema of the
//! Helm chart and docs/configuration.md. Tests compare these texts with the table. To add a field,
//! add it to [`Config`](crate::config::Config) and to the table. After a change of the table, run
//! the tests with `PLIMSOLL_REGENERATE=1`.

mod access;
mod check;
mod expected;
mod field_type;
mod kubelet;
mod node;
mod observing;
mod resizes;
mod safety;
mod values;

pub(super) use self::check::Mistake;
pub use self::field_type::{Choice, Field, Kind, Range};
pub(super) use self::node::{GUARD, KUBE_CGROUP, KUBE_RESERVED, SYSTEM_CGROUP, SYSTEM_RESERVED};
pub(super) use self::resizes::{RAISE, RESCUE};

/// All fields in the order of the documentation. A field inside a mapping is not here but in the
/// [`Kind::Mapping`] of this mapping.
pub static FIELDS: &[&Field] = &[
    &values::MODE,
    &values::THROTTLING,
    &values::RESERVATION,
    &values::HEADROOM,
    &values::ALLOCATABLE,
    &SYSTEM_CGROUP,
    &SYSTEM_RESERVED,
    &KUBE_CGROUP,
    &KUBE_RESERVED,
    &GUARD,
    &kubelet::KUBELET,
    &resizes::DEADLINE,
    &resizes::SHRINK,
    &resizes::SHRINK_DEADLINE,
    &RESCUE,
    &RAISE,
    &safety::REPAIR,
    &safety::BRAKE,
    &observing::RATIO,
    &observing::METRICS_ADDRESS,
    &observing::CONTAINER_METRICS,
    &observing::KUBECONFIG,
    &observing::LOG_LEVEL,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::model::Config;
    use crate::config::testing::parse;

    /// Returns all fields, each with the mapping that contains it.
    fn all() -> impl Iterator<Item = (Option<&'static Field>, &'static Field)> {
        FIELDS.iter().flat_map(|field| {
            let inner = field.fields().iter().map(|inner| (Some(*field), *inner));
            std::iter::once((None, *field)).chain(inner)
        })
    }

    /// Parses a configuration with one field. Adds a second field if the first field requires it.
    fn parse_field(outer: Option<&Field>, field: &Field, value: &str) -> Result<Config, String> {
        let text = match outer {
            Some(outer) => format!("{}: {{{}: {value}}}", outer.name, field.name),
            None => format!("{}: {value}", field.name),
        };
        let needed = match outer.unwrap_or(field).name {
            "systemReservedCgroup" => "systemReserved: {memory: 1Mi}",
            "systemReserved" => "systemReservedCgroup: /system.slice",
            "kubeReservedCgroup" => "kubeReserved: {memory: 1Mi}",
            "kubeReserved" => "kubeReservedCgroup: /kubelet.slice",
            _ => "",
        };
        parse(&format!("{text}\n{needed}\n"))
    }

    /// Returns values inside and outside of the field's range.
    fn bounds(field: &Field) -> (Vec<String>, Vec<String>) {
        let (inside, outside): (&[&str], &[&str]) = match &field.kind {
            Kind::Choice(choices) => {
                let words = choices.iter().map(|choice| choice.value.to_owned());
                return (words.collect(), vec!["other".to_owned(), "true".to_owned()]);
            }
            Kind::Count { most } => {
                let [most, more] = [*most, most + 1].map(|count| count.to_string());
                return (vec!["1".to_owned(), most], vec!["0".to_owned(), "1.5".to_owned(), more]);
            }
            Kind::Number(range) => {
                let (mut inside, mut outside) = (
                    vec![range.most.to_string()],
                    vec![(range.most * 1.01).to_string(), (range.least - 0.01).to_string()],
                );
                let least = if range.is_above_least { &mut outside } else { &mut inside };
                least.push(range.least.to_string());
                return (inside, outside);
            }
            Kind::Boolean => (&["true", "false", "yes", "off"], &["1", "'true'"]),
            Kind::Quantity { may_be_zero: true } => (&["0", "1"], &["-1", "1GB"]),
            Kind::Quantity { .. } => (&["1", "1.5Gi"], &["0", "-1", "1GB"]),
            Kind::QuantityOrAuto => (&["auto", "1"], &["0", "Auto"]),
            Kind::QuantityOrShare => (&["1", "1%", "100%"], &["0", "0%", "101%"]),
            Kind::Duration => (&["1ms", "1h 30m"], &["0s", "5"]),
            Kind::Cgroup => (&["/a/b", "a.slice"], &["/", "/a/../b", "/a:b"]),
            Kind::Address => (&["127.0.0.1:1", "'[::1]:1'"], &["localhost:1", "9477"]),
            Kind::Path => (&["/a"], &["a", "5"]),
            Kind::KubernetesVersion => (&["'1.37'", "v1.36.2+k3s1"], &["1.37", "2.0", "1.x"]),
            Kind::Mapping { .. } => (&[], &["5", "[a]"]),
        };
        let owned = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        (owned(inside), owned(outside))
    }

    #[test]
    fn parser_accepts_exactly_these_names() {
        let known: Vec<&str> = FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), known.len());
        let error = parse("unknown: 1").unwrap_err();
        assert!(error.contains(&format!("expected one of {}, found", known.join(", "))), "{error}");
        for field in FIELDS.iter().filter(|field| !field.fields().is_empty()) {
            let known: Vec<&str> = field.fields().iter().map(|field| field.name).collect();
            let error = parse_field(None, field, "{unknown: 1}").unwrap_err();
            let expected = format!("expected no other fields than {}, found", known.join(", "));
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn examples_reach_the_configuration() {
        for (outer, field) in all() {
            assert!(!field.examples.is_empty(), "{}", field.name);
            for example in field.examples {
                let config = parse_field(outer, field, example).unwrap();
                let value = field.value(&config).unwrap();
                if field.fields().is_empty() {
                    let quotes = ['"', '\''];
                    let example = example.trim_matches(quotes);
                    assert_eq!(value.trim_matches(quotes), example, "{}", field.name);
                }
                assert_eq!(parse_field(outer, field, &value), Ok(config), "{}", field.name);
            }
        }
    }

    #[test]
    fn defaults_are_those_of_the_configuration() {
        for (outer, field) in all() {
            let without = match outer {
                Some(outer) if field.default.is_some() => parse(&format!("{}: {{}}", outer.name)),
                _ => Ok(Config::default()),
            };
            match field.default {
                Some(default) => {
                    assert_eq!(parse_field(outer, field, default), without, "{}", field.name);
                }
                None => assert_eq!(field.value(&Config::default()), None, "{}", field.name),
            }
        }
    }

    #[test]
    fn parser_enforces_these_ranges() {
        for (outer, field) in all() {
            let (inside, outside) = bounds(field);
            for value in inside {
                let config = parse_field(outer, field, &value);
                assert!(config.is_ok(), "{} {value}: {config:?}", field.name);
            }
            let prefix = outer.map_or(String::new(), |_| format!("{}: ", field.name));
            let expected = format!(
                ": {}: expected {prefix}{}, found",
                outer.unwrap_or(field).name,
                field.expected()
            );
            for value in outside {
                let error = parse_field(outer, field, &value).unwrap_err();
                assert!(error.contains(&expected), "{error}\n{expected}");
            }
        }
    }

    #[test]
    fn only_fields_with_null_meaning_accept_null() {
        for (outer, field) in all() {
            assert_eq!(parse_field(outer, field, "null").is_ok(), field.null.is_some());
        }
    }

    #[test]
    fn documentation_has_few_and_short_sentences() {
        for (_, field) in all() {
            assert!(field.doc.ends_with('.'), "{}", field.doc);
            let choices = match &field.kind {
                Kind::Choice(choices) => choices.iter().map(|choice| choice.meaning).collect(),
                _ => Vec::new(),
            };
            for text in choices.into_iter().chain([field.doc]) {
                let sentences: Vec<&str> = text.split(". ").collect();
                assert!(sentences.len() <= 3, "{text}");
                let longest = sentences.iter().map(|text| text.split(' ').count()).max();
                assert!(longest <= Some(25), "{text}");
            }
        }
    }
}
