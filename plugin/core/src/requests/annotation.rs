//! Overrides of the node's policy in a pod's annotations.
//!
//! The key of an annotation has the same form as for other NRI plugins:
//! `<what>.plimsoll.nri.io/container.<name>` for one container. `<what>.plimsoll.nri.io/pod` or
//! plain `<what>.plimsoll.nri.io` applies to all containers of a pod. The most specific valid
//! annotation applies. The plugin reports an invalid annotation and then uses the next less
//! specific one. If the annotation for one container is invalid, the value for the whole pod
//! therefore still applies.
//!
//! | what | value |
//! |---|---|
//! | `memory-request` | a quantity, such as `128Mi`; used only without a checkpoint entry |
//! | `throttling-factor` | a number above 0 and at most 1, or `none` for no throttling |
//! | `reservation` | `none`, `tiered` or `hard`; at most the node's own policy |
//! | `oom-rescue` | `off`, or the highest limit, such as `512Mi`; at most the node's own ceiling |

use std::collections::HashMap;

pub use super::keys::DOMAIN;
use super::keys::{KEYS, MEMORY_REQUEST, OOM_RESCUE, RESERVATION, THROTTLING_FACTOR};
use super::notice::Notice;
use crate::policy::{Policy, ReservationPolicy, ThrottlingFactor};
use crate::units::{Bytes, excerpt};

/// Number of unknown keys that the plugin reports by name. The plugin only counts the other keys.
const UNKNOWN_NAMED: usize = 5;

/// Values of the annotations for one container. `None` means that there is no annotation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The memory request.
    pub memory_request: Option<Bytes>,
    /// The throttling factor. `Some(None)` disables throttling.
    pub throttling: Option<Option<ThrottlingFactor>>,
    /// The reservation policy.
    pub reservation: Option<ReservationPolicy>,
    /// The highest limit to which an OOM rescue may raise the container's limit. `Some(None)`
    /// disables OOM rescues.
    pub oom_rescue: Option<Option<Bytes>>,
}

impl Overrides {
    /// Reads a pod's annotations for the container of this name.
    ///
    /// Makes at most twelve look-ups, however many annotations the pod has.
    pub fn read(annotations: &HashMap<String, String>, container: &str) -> (Self, Vec<Notice>) {
        let mut notices = Vec::new();
        let overrides = Self {
            memory_request: most_specific(
                annotations,
                container,
                MEMORY_REQUEST,
                &mut notices,
                |value| Bytes::from_quantity(value).map_err(|error| error.to_string()),
            ),
            throttling: most_specific(
                annotations,
                container,
                THROTTLING_FACTOR,
                &mut notices,
                |value| match value {
                    "none" => Ok(None),
                    number => number.parse().map(Some).map_err(|_| {
                        format!(
                            "expected a number above 0 and at most 1, or none, found '{}'",
                            excerpt(number)
                        )
                    }),
                },
            ),
            reservation: most_specific(
                annotations,
                container,
                RESERVATION,
                &mut notices,
                |value| match value {
                    "none" => Ok(ReservationPolicy::None),
                    "tiered" => Ok(ReservationPolicy::TieredReservation),
                    "hard" => Ok(ReservationPolicy::HardReservation),
                    other => {
                        Err(format!("expected none, tiered or hard, found '{}'", excerpt(other)))
                    }
                },
            ),
            oom_rescue: most_specific(annotations, container, OOM_RESCUE, &mut notices, |value| {
                match value {
                    "off" => Ok(None),
                    ceiling => {
                        Bytes::from_quantity(ceiling).map(Some).map_err(|error| error.to_string())
                    }
                }
            }),
        };
        (overrides, notices)
    }
}

/// Returns the value of the most specific valid annotation for `what`.
fn most_specific<T>(
    annotations: &HashMap<String, String>,
    container: &str,
    what: &str,
    notices: &mut Vec<Notice>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    for key in [format!("{what}/container.{container}"), format!("{what}/pod"), what.to_owned()] {
        match annotations.get(&key).map(|value| parse(value)) {
            Some(Ok(value)) => return Some(value),
            Some(Err(error)) => {
                notices.push(Notice::InvalidAnnotation { key: excerpt(&key), error })
            }
            None => {}
        }
    }
    None
}

/// Returns the policy for one container: the node's policy with the pod's overrides.
///
/// An override may ask for less protection than the node's policy, but not for more. The reason is
/// that protection takes memory from all other pods on the node. From weak to strong, the policies
/// are `None`, `TieredReservation` and `HardReservation`.
///
/// Throttling affects only the container itself, so an override may set any factor on a node with
/// throttling. On a node without throttling the override has no effect.
pub fn overridden(node: &Policy, overrides: &Overrides) -> (Policy, Vec<Notice>) {
    let mut notices = Vec::new();
    let reservation = match overrides.reservation {
        Some(asked) if asked > node.reservation => {
            notices.push(Notice::ReservationAboveNode { asked, allowed: node.reservation });
            node.reservation
        }
        Some(asked) => asked,
        None => node.reservation,
    };
    let throttling = match overrides.throttling {
        Some(Some(_)) if node.throttling.is_none() => {
            notices.push(Notice::ThrottlingOff);
            None
        }
        Some(asked) => asked,
        None => node.throttling,
    };
    (Policy { throttling, reservation, ..*node }, notices)
}

/// Reports unknown annotations in this plugin's domain, such as a misspelt `memory-requests`. Names
/// only a few of them and counts the rest. Reads all annotations, so call it only once per pod.
pub fn unknown(annotations: &HashMap<String, String>) -> Vec<Notice> {
    let mut keys: Vec<&str> =
        annotations.keys().map(String::as_str).filter(|key| is_unknown(key)).collect();
    keys.sort_unstable();
    let more = keys.len().saturating_sub(UNKNOWN_NAMED);
    keys.truncate(UNKNOWN_NAMED);
    let mut notices: Vec<_> =
        keys.into_iter().map(|key| Notice::UnknownAnnotation { key: excerpt(key) }).collect();
    if more > 0 {
        notices.push(Notice::MoreUnknownAnnotations { count: more });
    }
    notices
}

fn is_unknown(key: &str) -> bool {
    let (what, target) = match key.split_once('/') {
        Some((what, target)) => (what, Some(target)),
        None => (key, None),
    };
    let ours = what.strip_suffix(DOMAIN).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let known = KEYS.contains(&what)
        && match target {
            None | Some("pod") => true,
            Some(target) => target.strip_prefix("container.").is_some_and(|name| !name.is_empty()),
        };
    ours && !known
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn annotations<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn the_most_specific_annotation_counts() {
        let annotations = annotations([
            ("memory-request.plimsoll.nri.io", "1Mi"),
            ("memory-request.plimsoll.nri.io/pod", "2Mi"),
            ("memory-request.plimsoll.nri.io/container.web", "3Mi"),
            ("throttling-factor.plimsoll.nri.io/pod", "0.5"),
            ("throttling-factor.plimsoll.nri.io/container.web", "none"),
            ("reservation.plimsoll.nri.io", "tiered"),
            ("oom-rescue.plimsoll.nri.io/pod", "off"),
            ("oom-rescue.plimsoll.nri.io/container.web", "512Mi"),
        ]);
        let (web, notices) = Overrides::read(&annotations, "web");
        assert_eq!(notices, []);
        assert_eq!(
            web,
            Overrides {
                memory_request: Some(Bytes::new(3 << 20)),
                throttling: Some(None),
                reservation: Some(ReservationPolicy::TieredReservation),
                oom_rescue: Some(Some(Bytes::new(512 << 20))),
            }
        );
        let (other, _) = Overrides::read(&annotations, "other");
        assert_eq!(other.memory_request, Some(Bytes::new(2 << 20)));
        assert_eq!(other.throttling, Some(ThrottlingFactor::new(0.5)));
        assert_eq!(other.oom_rescue, Some(None));
    }

    #[test]
    fn an_invalid_annotation_falls_back_with_notice() {
        let annotations = annotations([
            ("memory-request.plimsoll.nri.io", "1Mi"),
            ("memory-request.plimsoll.nri.io/container.web", "lots"),
            ("throttling-factor.plimsoll.nri.io", "1.5"),
            ("reservation.plimsoll.nri.io/pod", "Hard"),
        ]);
        let (overrides, notices) = Overrides::read(&annotations, "web");
        assert_eq!(
            overrides,
            Overrides { memory_request: Some(Bytes::new(1 << 20)), ..Overrides::default() }
        );
        let notices: Vec<_> = notices.iter().map(ToString::to_string).collect();
        assert_eq!(
            notices,
            [
                "annotation memory-request.plimsoll.nri.io/container.web: expected a quantity \
                 such as 128Mi, 1.5Gi, 500M or 1e9, found 'lots'; it is ignored",
                "annotation throttling-factor.plimsoll.nri.io: expected a number above 0 and at \
                 most 1, or none, found '1.5'; it is ignored",
                "annotation reservation.plimsoll.nri.io/pod: expected none, tiered or hard, found \
                 'Hard'; it is ignored",
            ]
        );
    }

    #[test]
    fn ten_thousand_annotations_do_not_matter() {
        let mut annotations: HashMap<_, _> =
            (0..10_000).map(|i| (format!("k{i}.plimsoll.nri.io/pod"), "x".repeat(100))).collect();
        annotations.insert("reservation.plimsoll.nri.io".to_owned(), "hard".to_owned());
        let (overrides, notices) = Overrides::read(&annotations, "web");
        assert_eq!(
            (overrides.reservation, notices),
            (Some(ReservationPolicy::HardReservation), vec![])
        );
        let unknown = unknown(&annotations);
        assert_eq!(unknown.len(), 6);
        assert_eq!(unknown[5], Notice::MoreUnknownAnnotations { count: 9995 });
    }

    #[test]
    fn only_keys_in_our_name_are_unknown() {
        let annotations = annotations([
            ("memory-requests.plimsoll.nri.io", "1Mi"),
            ("memory-request.plimsoll.nri.io/web", "1Mi"),
            ("memory-request.plimsoll.nri.io/container.", "1Mi"),
            ("plimsoll.nri.io/reservation", "hard"),
            ("memory-request.plimsoll.nri.io/pod", "1Mi"),
            ("reservation.plimsoll.nri.io/container.web", "hard"),
            ("notplimsoll.nri.io", ""),
            ("memory-request.memtierd.nri.io", ""),
            ("example.com/x", ""),
            ("", ""),
        ]);
        let keys: Vec<_> = unknown(&annotations)
            .into_iter()
            .map(|notice| match notice {
                Notice::UnknownAnnotation { key } => key,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            keys,
            [
                "memory-request.plimsoll.nri.io/container.",
                "memory-request.plimsoll.nri.io/web",
                "memory-requests.plimsoll.nri.io",
                "plimsoll.nri.io/reservation",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_annotations_are_read_without_harm(
            what in "(memory-request|throttling-factor|reservation|.{0,5})",
            target in "(|/pod|/container[.]web|/.{0,8})",
            value in ".{0,40}",
        ) {
            let annotations = HashMap::from([(format!("{what}.plimsoll.nri.io{target}"), value)]);
            let (_, notices) = Overrides::read(&annotations, "web");
            for notice in notices.iter().chain(&unknown(&annotations)) {
                prop_assert!(!notice.to_string().contains('\n'));
            }
        }
    }

    #[test]
    fn overrides_may_only_weaken_node_reservation() {
        use ReservationPolicy::{HardReservation, None as Nothing, TieredReservation};
        for (node, asked, expected, refused) in [
            (HardReservation, Nothing, Nothing, false),
            (HardReservation, TieredReservation, TieredReservation, false),
            (HardReservation, HardReservation, HardReservation, false),
            (TieredReservation, HardReservation, TieredReservation, true),
            (TieredReservation, Nothing, Nothing, false),
            (Nothing, TieredReservation, Nothing, true),
        ] {
            let node = Policy { reservation: node, ..Policy::default() };
            let overrides = Overrides { reservation: Some(asked), ..Overrides::default() };
            let (policy, notices) = overridden(&node, &overrides);
            assert_eq!((policy.reservation, !notices.is_empty()), (expected, refused));
        }
    }

    #[test]
    fn an_override_sets_or_removes_throttling() {
        let half = ThrottlingFactor::new(0.5);
        for (asked, expected) in
            [(None, Some(ThrottlingFactor::DEFAULT)), (Some(half), half), (Some(None), None)]
        {
            let overrides = Overrides { throttling: asked, ..Overrides::default() };
            assert_eq!(
                overridden(&Policy::default(), &overrides),
                (Policy { throttling: expected, ..Policy::default() }, vec![])
            );
        }
        // An override does not enable throttling on a node without throttling.
        let overrides = Overrides { throttling: Some(half), ..Overrides::default() };
        let off = Policy { throttling: None, ..Policy::default() };
        assert_eq!(overridden(&off, &overrides), (off, vec![Notice::ThrottlingOff]));
    }
}
