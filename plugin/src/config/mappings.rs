//! Conversion of `oomRescue` and `brake`.

use plimsoll_core::policy::rescue::OomRescue;
use plimsoll_core::units::{Bytes, excerpt};

use crate::config::brake::Bounds;
use crate::config::names::*;
use crate::config::value::RawValue;

impl RawValue {
    /// Returns the OOM rescue. The error has the expected form and the value found.
    pub(super) fn oom_rescue(&self) -> Result<Option<OomRescue>, (String, String)> {
        let fields = match self {
            Self::Null => return Ok(None),
            Self::Map(fields) => fields,
            other => {
                return Err((
                    "null, or a mapping such as {kills: 3, ceiling: 1Gi}".to_owned(),
                    other.to_string(),
                ));
            }
        };
        let mut rescue = OomRescue::default();
        for (index, (field, value)) in fields.iter().enumerate() {
            let wrong = |expected: &str| Err((format!("{field}: {expected}"), value.to_string()));
            if fields[..index].iter().any(|(other, _)| other == field) {
                return Err(("each field once".to_owned(), format!("'{}' again", excerpt(field))));
            }
            match (field.as_str(), value) {
                (KILLS, Self::Number { value: kills, .. })
                    if kills.fract() == 0.0 && (1.0..=1000.0).contains(kills) =>
                {
                    rescue.kills = *kills as u32;
                }
                (KILLS, _) => return wrong("a number from 1 to 1000"),
                (WINDOW, value) => match value.duration() {
                    Some(Some(window)) => rescue.window = window,
                    _ => return wrong("a time above 0 such as 10m"),
                },
                (FACTOR, Self::Number { value: factor, .. }) if (1.0..=10.0).contains(factor) => {
                    rescue.factor = *factor
                }
                (FACTOR, _) => return wrong("a number from 1 to 10"),
                (MINIMUM, value) => match value.quantity() {
                    Some(minimum) => rescue.minimum = minimum,
                    None => return wrong("a quantity such as 100Mi, or 0"),
                },
                (CEILING, value) => match value.ceiling() {
                    Some(ceiling) => rescue.ceiling = ceiling,
                    None => {
                        return wrong("a quantity above 0 such as 1Gi, or a share from 1% to 100%");
                    }
                },
                (unknown, _) => {
                    let known = [KILLS, WINDOW, FACTOR, MINIMUM, CEILING].join(", ");
                    return Err((
                        format!("no other fields than {known}"),
                        format!("'{}'", excerpt(unknown)),
                    ));
                }
            }
        }
        if rescue.factor <= 1.0 && rescue.minimum == Bytes::ZERO {
            return Err((
                "a factor above 1, or a minimum above 0".to_owned(),
                "neither".to_owned(),
            ));
        }
        Ok(Some(rescue))
    }

    /// Returns the bounds of the brake. The error has the expected form and the value found.
    pub(super) fn brake(&self) -> Result<Option<Bounds>, (String, String)> {
        let fields = match self {
            Self::Null => return Ok(None),
            Self::Map(fields) => fields,
            other => {
                return Err((
                    "null, or a mapping such as {repairs: 500}".to_owned(),
                    other.to_string(),
                ));
            }
        };
        let mut bounds = Bounds::default();
        for (index, (field, value)) in fields.iter().enumerate() {
            if fields[..index].iter().any(|(other, _)| other == field) {
                return Err(("each field once".to_owned(), format!("'{}' again", excerpt(field))));
            }
            let bound = match field.as_str() {
                REPAIRS => &mut bounds.repairs,
                CONFLICTS => &mut bounds.conflicts,
                KILLS => &mut bounds.kills,
                WINDOW => {
                    let expected =
                        || (format!("{field}: a time above 0 such as 10m"), value.to_string());
                    bounds.window = value.duration().flatten().ok_or_else(expected)?;
                    continue;
                }
                unknown => {
                    let known = [REPAIRS, CONFLICTS, KILLS, WINDOW].join(", ");
                    return Err((
                        format!("no other fields than {known}"),
                        format!("'{}'", excerpt(unknown)),
                    ));
                }
            };
            match value {
                Self::Number { value, .. }
                    if value.fract() == 0.0 && (1.0..=1e6).contains(value) =>
                {
                    *bound = *value as u32;
                }
                value => {
                    return Err((
                        format!("{field}: a number from 1 to 1000000"),
                        value.to_string(),
                    ));
                }
            }
        }
        Ok(Some(bounds))
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::policy::rescue::Ceiling;

    use super::*;
    use crate::config::testing::parse;

    #[test]
    fn a_rescue_is_off_unless_there_is_a_mapping() {
        assert_eq!(parse("oomRescue: null").unwrap().oom_rescue, None);
        assert_eq!(parse("oomRescue: {}").unwrap().oom_rescue, Some(OomRescue::default()));
        let share = parse("oomRescue: {ceiling: 25%}").unwrap().oom_rescue.unwrap();
        assert_eq!(share.ceiling, Ceiling::Share(25));
        for (text, complaint) in [
            ("on", "expected null, or a mapping such as {kills: 3, ceiling: 1Gi}, found 'on'"),
            ("{kills: 0}", "expected kills: a number from 1 to 1000, found the number 0"),
            ("{kills: 1.5}", "expected kills: a number from 1 to 1000, found the number 1.5"),
            ("{window: 0s}", "expected window: a time above 0 such as 10m, found '0s'"),
            ("{factor: 0.9}", "expected factor: a number from 1 to 10, found the number 0.9"),
            (
                "{minimum: -1}",
                "expected minimum: a quantity such as 100Mi, or 0, found the number -1",
            ),
            (
                "{ceiling: 0%}",
                "expected ceiling: a quantity above 0 such as 1Gi, or a share from 1% to 100%, found '0%'",
            ),
            (
                "{ceiling: 101%}",
                "expected ceiling: a quantity above 0 such as 1Gi, or a share from 1% to 100%, found '101%'",
            ),
            (
                "{factor: 1, minimum: 0}",
                "expected a factor above 1, or a minimum above 0, found neither",
            ),
            (
                "{kill: 3}",
                "expected no other fields than kills, window, factor, minimum, ceiling, found 'kill'",
            ),
            ("{kills: 3, kills: 4}", "expected each field once, found 'kills' again"),
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
            ("on", "expected null, or a mapping such as {repairs: 500}, found 'on'"),
            ("{kills: 0}", "expected kills: a number from 1 to 1000000, found the number 0"),
            (
                "{repairs: 1e7}",
                "expected repairs: a number from 1 to 1000000, found the number 10000000",
            ),
            ("{window: 0s}", "expected window: a time above 0 such as 10m, found '0s'"),
            ("{window: null}", "expected window: a time above 0 such as 10m, found nothing (null)"),
            (
                "{kill: 3}",
                "expected no other fields than repairs, conflicts, kills, window, found 'kill'",
            ),
            ("{kills: 3, kills: 4}", "expected each field once, found 'kills' again"),
        ] {
            let error = parse(&format!("brake: {text}")).unwrap_err();
            assert_eq!(error, format!("f.yaml:1: brake: {complaint}"), "{text}");
        }
    }
}
