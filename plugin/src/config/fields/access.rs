//! Functions that read and write a field in a [`Config`](crate::config::Config).

/// Creates the [`Access`](crate::config::fields::field_type::Access) of a field.
///
/// - `access!(repair)`: the field is `repair` in `Config`.
/// - `access!(brake => kills)`: the field is `kills` in the value of the optional `brake`.
/// - `access!(reserved System, system.memory)`: the field is `system.memory` in the draft
///   and `memory` of the entry with the owner `System` in `Config::reserved`.
macro_rules! access {
    (reserved $owner:ident, $draft:ident.$part:ident) => {
        Access {
            set: |draft, value| value.store(&mut draft.$draft.$part),
            get: |config| {
                let mut entries = config.reserved.iter();
                let entry = entries.find(|reserved| reserved.owner == Owner::$owner)?;
                Some(entry.$part.to_value())
            },
        }
    };
    ($outer:ident => $inner:ident) => {
        Access {
            set: |draft, value| {
                if let Some(outer) = &mut draft.config.$outer {
                    value.store(&mut outer.$inner);
                }
            },
            get: |config| config.$outer.as_ref().map(|outer| outer.$inner.to_value()),
        }
    };
    ($first:ident $(.$more:ident)*) => {
        Access {
            set: |draft, value| value.store(&mut draft.config.$first$(.$more)*),
            get: |config| Some(config.$first$(.$more)*.to_value()),
        }
    };
}

pub(super) use access;
