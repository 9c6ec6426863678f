//! A systemd unit: its properties, and the D-Bus calls that act on the unit.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use tokio::time::timeout;
use zbus::{Connection, Message, Variant, fdo};

use super::error::SystemdError;
use super::properties::{LIMITS, carried, read};
use crate::cgroup::directory::Cgroup;

/// Timeout of one call. systemd answers within a second even in an emulated machine, but may be
/// busy with a reload.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

pub(super) const NAME: &str = "org.freedesktop.systemd1";

/// Result of [`Systemd::set`](super::Systemd::set): whether systemd keeps the protection of a
/// cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// No unit owns exactly this cgroup, or the cgroup is gone. systemd keeps no protection.
    NoUnit,
    /// The unit that owns the cgroup already had these properties.
    Unchanged,
    /// [`Systemd::set`](super::Systemd::set) set the properties of the unit that owns the cgroup.
    Set,
}

pub(super) struct Unit<'a> {
    pub(super) name: &'a str,
    /// D-Bus interface of the unit's type.
    pub(super) interface: &'static str,
}

impl<'a> Unit<'a> {
    /// Returns the unit that may own a cgroup, derived from the cgroup's name.
    pub(super) fn of(cgroup: &'a CgroupPath) -> Option<Self> {
        let name = cgroup.name();
        let interface = match name.rsplit_once('.')?.1 {
            "slice" => "org.freedesktop.systemd1.Slice",
            "scope" => "org.freedesktop.systemd1.Scope",
            "service" => "org.freedesktop.systemd1.Service",
            _ => return None,
        };
        Some(Self { name, interface })
    }
}

impl Unit<'_> {
    /// Sets the protection of the unit. With `limits`, also sets the unit's memory limit and CPU
    /// limit.
    pub(super) async fn set(
        &self,
        bus: &Connection,
        cgroup: &Cgroup,
        protection: Protection,
        limits: bool,
    ) -> Result<Persistence, SystemdError> {
        let Some(numbers) = self.properties(bus, cgroup).await? else {
            return Ok(Persistence::NoUnit);
        };
        let wanted = [("MemoryMin", protection.min.get()), ("MemoryLow", protection.low.get())];
        let is_set = wanted.iter().all(|(name, value)| numbers.get(*name) == Some(value));
        if is_set && !limits {
            return Ok(Persistence::Unchanged);
        }
        // Read the files after the properties. systemd writes the files before it reads the next
        // message, so each file is at least as new as its property. In the reverse order, the
        // plugin would revert a value that the kubelet sets meanwhile.
        let carried = carried(&numbers, |file| read(cgroup, file));
        if is_set && !carried.iter().any(|(property, _)| LIMITS.contains(property)) {
            return Ok(Persistence::Unchanged);
        }
        let mut settings = wanted.to_vec();
        settings.extend(carried);
        if cgroup.is_removed() {
            return Ok(Persistence::NoUnit);
        }
        self.set_properties(bus, settings).await?;
        Ok(Persistence::Set)
    }

    /// Returns all properties of the unit whose values are numbers, or `None` if no unit owns
    /// exactly this cgroup.
    async fn properties(
        &self,
        bus: &Connection,
        cgroup: &Cgroup,
    ) -> Result<Option<HashMap<String, u64>>, SystemdError> {
        let path = format!("/org/freedesktop/systemd1/unit/{}", bus_label(self.name));
        let call = "Properties.GetAll";
        // systemd loads a unit that is not loaded yet. A unit that was not loaded has no cgroup.
        let get = bus.call_method(
            Some(NAME),
            path.as_str(),
            Some("org.freedesktop.DBus.Properties"),
            "GetAll",
            &self.interface,
        );
        let reply = match self.answer(call, get).await {
            Err(SystemdError::Failed { error, .. }) if is_unknown(&error) => return Ok(None),
            reply => reply?,
        };
        let body = reply.body();
        let properties: HashMap<&str, Variant<'_>> = body
            .deserialize()
            .map_err(|error| SystemdError::Failed { unit: self.name.to_owned(), call, error })?;
        match properties.get("ControlGroup") {
            Some(Variant::Str(path)) if path.as_str() == cgroup.path.to_string() => {}
            _ => return Ok(None),
        }
        let numbers = properties.iter().filter_map(|(name, value)| {
            if let Variant::U64(number) = value {
                Some(((*name).to_owned(), *number))
            } else {
                None
            }
        });
        Ok(Some(numbers.collect()))
    }

    /// Sets these properties, and waits until systemd has written the files.
    async fn set_properties(
        &self,
        bus: &Connection,
        settings: Vec<(&str, u64)>,
    ) -> Result<(), SystemdError> {
        let settings: Vec<(&str, Variant<'_>)> =
            settings.into_iter().map(|(name, value)| (name, Variant::U64(value))).collect();
        let body = (self.name, true, settings);
        let set = bus.call_method(
            Some(NAME),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.systemd1.Manager"),
            "SetUnitProperties",
            &body,
        );
        self.answer("SetUnitProperties", set).await?;
        // systemd answers the call before it writes the files, but writes the files before it reads
        // the next message. When systemd answers this ping, systemd has therefore written the
        // files.
        let ping = bus.call_method(
            Some(NAME),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.DBus.Peer"),
            "Ping",
            &(),
        );
        self.answer("Peer.Ping", ping).await?;
        Ok(())
    }
}

impl<'a> Unit<'a> {
    async fn answer(
        &self,
        call: &'static str,
        answer: impl Future<Output = zbus::Result<Message>>,
    ) -> Result<Message, SystemdError> {
        self.answer_within(LIMIT, call, answer).await
    }

    pub(super) async fn answer_within(
        &self,
        limit: Duration,
        call: &'static str,
        answer: impl Future<Output = zbus::Result<Message>>,
    ) -> Result<Message, SystemdError> {
        use fdo::Error::{
            AccessDenied, AuthFailed, Disconnected, InteractiveAuthorizationRequired,
        };
        use fdo::Error::{NameHasNoOwner, NoReply, ServiceUnknown};
        let unit = self.name.to_owned();
        let error = match timeout(limit, answer).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => error,
            Err(_) => return Err(SystemdError::Timeout { unit, call, limit }),
        };
        Err(match &error {
            zbus::Error::InputOutput(_) => SystemdError::Lost { unit, call, error },
            zbus::Error::FDO(answer) => match **answer {
                // systemd is temporarily absent from the bus.
                ServiceUnknown(_) | NameHasNoOwner(_) | NoReply(_) | Disconnected(_) => {
                    SystemdError::Lost { unit, call, error }
                }
                AccessDenied(_) | AuthFailed(_) | InteractiveAuthorizationRequired(_) => {
                    SystemdError::Denied { unit, call, error }
                }
                _ => SystemdError::Failed { unit, call, error },
            },
            _ => SystemdError::Failed { unit, call, error },
        })
    }
}

/// Returns whether an error from `GetAll` means that systemd has no such unit, or that no unit can
/// have this name.
fn is_unknown(error: &zbus::Error) -> bool {
    use fdo::Error::{InvalidArgs, UnknownInterface, UnknownObject};
    match error {
        zbus::Error::FDO(error) => {
            matches!(**error, InvalidArgs(_) | UnknownObject(_) | UnknownInterface(_))
        }
        zbus::Error::MethodError(name, ..) => {
            name.as_str() == "org.freedesktop.systemd1.NoSuchUnit"
        }
        _ => false,
    }
}

/// Escapes the name of a unit for its object path, like systemd's `bus_label_escape`.
fn bus_label(name: &str) -> String {
    use std::fmt::Write as _;
    let mut label = String::with_capacity(name.len() + 8);
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || index > 0 && byte.is_ascii_digit() {
            label.push(char::from(byte));
        } else {
            let _ = write!(label, "_{byte:02x}");
        }
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_does() {
        assert_eq!(bus_label("kubepods-pod1_2.slice"), "kubepods_2dpod1_5f2_2eslice");
        assert_eq!(bus_label("1a.slice"), "_31a_2eslice");
    }
}
