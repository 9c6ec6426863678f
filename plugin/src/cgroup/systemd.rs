//! Makes the protection of a cgroup persistent where systemd owns the cgroup.
//!
//! systemd overwrites the files of a unit's cgroup when it applies the unit's properties. systemd
//! does so on daemon-reload and daemon-reexec, and whenever a program sets any property of the
//! unit. Only properties persist. The plugin sets them with `SetUnitProperties(runtime=true)`.
//!
//! When one property is set, systemd rewrites nearly every file of the unit's memory, cpu and pids
//! controllers. The new values come from systemd's own state (observed with systemd 257 and 262).
//! Another program may have written such a file without setting the property. The plugin then sets
//! the property to the value in the file, so that only the protection changes.
//!
//! The plugin does not carry over `memory.oom.group`, `memory.zswap.writeback`, `cpuset.*` and
//! `io.weight`. Either they have no property, or no program sets them for a slice.
//!
//! The plugin connects to the system bus. systemd's private socket is no alternative: zbus accepts
//! no message from there, because the sender has no unique name. systemd also sends every signal to
//! every client there.
//!
//! The plugin subscribes to no signal. The signal `Reloading` would announce that files lose their
//! values, but properties keep theirs.
//!
//! Source: systemd's org.freedesktop.systemd1(5), systemd.resource-control(5), and
//! `src/core/cgroup.c`.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::policy::Protection;
use rustix::fs::{AtFlags, Dir, FileType, Mode};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zbus::{Connection, Message, Variant, connection::Builder, fdo};

use super::{Cgroup, CgroupError, CgroupRoot, DIRECTORY, open_beneath};

/// Timeout of one call. systemd answers within a second even in an emulated machine, but may be
/// busy with a reload.
const LIMIT: Duration = Duration::from_secs(5);

const BUS: &str = "run/dbus/system_bus_socket";
const NAME: &str = "org.freedesktop.systemd1";
const DROP_INS: &str = "run/systemd/system.control";
/// Drop-in files of all properties that [`Systemd::set`] may set.
const OURS: [&str; 10] = [
    "50-MemoryMin.conf",
    "50-MemoryLow.conf",
    "50-MemoryHigh.conf",
    "50-MemoryMax.conf",
    "50-MemorySwapMax.conf",
    "50-MemoryZSwapMax.conf",
    "50-CPUWeight.conf",
    "50-CPUQuota.conf",
    "50-CPUQuotaPeriodSec.conf",
    "50-TasksMax.conf",
];

/// Drop-in files of the two protection properties.
const OF_PROTECTION: [&str; 2] = ["50-MemoryMin.conf", "50-MemoryLow.conf"];

/// Timeout of a reload, in which systemd reads all unit files again.
const RELOAD: Duration = Duration::from_secs(60);

/// Files that systemd rewrites together with the protection, with the properties that determine the
/// values. `cpu.max` is missing here because two properties determine it.
const CARRIED: [(&str, &str); 6] = [
    ("memory.high", "MemoryHigh"),
    ("memory.max", "MemoryMax"),
    ("memory.swap.max", "MemorySwapMax"),
    ("memory.zswap.max", "MemoryZSwapMax"),
    ("cpu.weight", "CPUWeight"),
    ("pids.max", "TasksMax"),
];

/// Properties of the memory limit and the CPU limit.
const LIMITS: [&str; 2] = ["MemoryMax", "CPUQuotaPerSecUSec"];

/// systemd's value for "none" and "not set". Files contain `max` instead.
const INFINITY: u64 = u64::MAX;
/// One second in microseconds, the unit of all values of `cpu.max`.
const A_SECOND: u64 = 1_000_000;

/// Persistence of a cgroup's protection, as returned by [`Systemd::set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// No unit owns exactly this cgroup, or the cgroup is gone. Only the file holds the protection.
    NoUnit,
    /// The unit that owns the cgroup already had these properties.
    Unchanged,
    /// [`Systemd::set`] set the properties of the unit that owns the cgroup.
    Set,
}

/// Error while making the protection of a cgroup persistent.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The plugin cannot connect to systemd.
    #[error("cannot reach systemd at {}: {error}; expected a bus: is the host's /run there, is dbus up?", socket.display())]
    Connect {
        /// Path of the bus socket.
        socket: PathBuf,
        /// The cause.
        error: zbus::Error,
    },
    /// systemd did not answer a call in time.
    #[error("unit {unit}: systemd did not answer {call} within {} s; see whether systemctl does", limit.as_secs())]
    Timeout {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The timeout.
        limit: Duration,
    },
    /// The connection broke, or systemd left the bus.
    #[error("unit {unit}: lost systemd in {call}: {error}; expected it back soon")]
    Lost {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The cause.
        error: zbus::Error,
    },
    /// systemd denied the call.
    #[error(
        "unit {unit}: systemd denied {call}: {error}; expected to be root on the host: check who runs this"
    )]
    Denied {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// Error from systemd.
        error: zbus::Error,
    },
    /// systemd answered with another error or with an unexpected reply.
    #[error("unit {unit}: {call} failed: {error}; expected systemd 242 or later: see its journal")]
    Failed {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The cause.
        error: zbus::Error,
    },
    /// The client backs off after a recent failure.
    #[error("systemd is left alone for another {} s, since: {cause}", pause.as_secs())]
    Paused {
        /// Remaining time of the back-off.
        pause: Duration,
        /// The last failure.
        cause: String,
    },
}

/// Client of the host's systemd. It connects when a connection is first needed, and again after a
/// connection is lost.
#[derive(Debug)]
pub struct Systemd {
    host: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bus: Option<Arc<Connection>>,
    /// Number of consecutive failures.
    failures: u32,
    /// End of the back-off, with the last failure.
    pause: Option<(Instant, String)>,
}

impl Systemd {
    /// Creates a client of the systemd on the host whose root directory is `host`. Does not connect
    /// yet.
    pub fn new(host: &Path) -> Self {
        Self { host: host.to_owned(), state: Mutex::default() }
    }

    /// Makes `memory.min` and `memory.low` of a cgroup persistent if a systemd unit owns exactly
    /// this cgroup. With `limits`, also makes the current `memory.max` and `cpu.max` persistent.
    /// The files should already hold all values, because systemd takes time to write them.
    ///
    /// Several cgroups may be set concurrently. Each call asks systemd again which cgroup the unit
    /// owns, so the answer cannot be stale when a path is reused. This check needs no extra call.
    ///
    /// # Errors
    ///
    /// Fails if systemd denies the call, is unreachable or does not answer in time. After the last
    /// two errors the client backs off. The back-off doubles with each consecutive failure, from 1
    /// second to 64 seconds.
    pub async fn set(
        &self,
        cgroup: &Cgroup,
        protection: Protection,
        limits: bool,
    ) -> Result<Lasting, SystemdError> {
        let Some(unit) = Unit::of(&cgroup.path) else { return Ok(Lasting::NoUnit) };
        let bus = self.bus(None).await?;
        let mut result = unit.set(&bus, cgroup, protection, limits).await;
        if matches!(result, Err(SystemdError::Lost { .. })) {
            // systemd was re-executed, or dbus was restarted. Setting the same values twice does no
            // harm.
            result = unit.set(&*self.bus(Some(&bus)).await?, cgroup, protection, limits).await;
        }
        let mut state = self.state.lock().await;
        match &result {
            // systemd answered, so it can be reached.
            Ok(_) | Err(SystemdError::Denied { .. } | SystemdError::Failed { .. }) => {
                state.failures = 0
            }
            Err(error) => state.fail(error),
        }
        result
    }

    /// Makes systemd read all unit files again, for instance after [`remove_protection`].
    ///
    /// # Errors
    ///
    /// Fails if systemd denies the call, is unreachable or does not answer within a minute.
    pub async fn reload(&self) -> Result<(), SystemdError> {
        let bus = self.bus(None).await?;
        let manager = Unit { name: "(all)", interface: "org.freedesktop.systemd1.Manager" };
        let call = bus.call_method(
            Some(NAME),
            "/org/freedesktop/systemd1",
            Some(manager.interface),
            "Reload",
            &(),
        );
        manager.answer_within(RELOAD, "Reload", call).await.map(|_| ())
    }

    /// Returns the connection. Connects again if the connection is closed or is `lost`.
    async fn bus(&self, lost: Option<&Arc<Connection>>) -> Result<Arc<Connection>, SystemdError> {
        // Keep the lock while connecting, so that concurrent callers share this attempt.
        let mut state = self.state.lock().await;
        if let Some((until, cause)) = &state.pause {
            let pause = until.saturating_duration_since(Instant::now());
            if !pause.is_zero() {
                return Err(SystemdError::Paused { pause, cause: cause.clone() });
            }
        }
        if let Some(bus) = &state.bus
            && !bus.is_closed()
            && !lost.is_some_and(|lost| Arc::ptr_eq(bus, lost))
        {
            return Ok(Arc::clone(bus));
        }
        let bus = connect(&self.host).await.inspect_err(|error| state.fail(error))?;
        Ok(Arc::clone(state.bus.insert(Arc::new(bus))))
    }
}

impl State {
    fn fail(&mut self, error: &SystemdError) {
        // Concurrent calls fail together. Count them as one failure.
        let now = Instant::now();
        if self.pause.as_ref().is_none_or(|(until, _)| *until <= now) {
            let pause = Duration::from_secs(1 << self.failures.min(6));
            self.failures += 1;
            self.pause = Some((now + pause, error.to_string()));
        }
        self.bus = None;
    }
}

async fn connect(host: &Path) -> Result<Connection, SystemdError> {
    let socket = host.join(BUS);
    let connect = async {
        let stream = UnixStream::connect(&socket).await?.into_std()?;
        Builder::unix_stream(stream).build().await
    };
    let error = match timeout(LIMIT, connect).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error,
        Err(_) => io::Error::from(io::ErrorKind::TimedOut).into(),
    };
    Err(SystemdError::Connect { socket, error })
}

struct Unit<'a> {
    name: &'a str,
    /// D-Bus interface of the unit's type.
    interface: &'static str,
}

impl<'a> Unit<'a> {
    /// Returns the unit that may own a cgroup, derived from the cgroup's name.
    fn of(cgroup: &'a CgroupPath) -> Option<Self> {
        let name = cgroup.name();
        let interface = match name.rsplit_once('.')?.1 {
            "slice" => "org.freedesktop.systemd1.Slice",
            "scope" => "org.freedesktop.systemd1.Scope",
            "service" => "org.freedesktop.systemd1.Service",
            _ => return None,
        };
        Some(Self { name, interface })
    }

    async fn set(
        &self,
        bus: &Connection,
        cgroup: &Cgroup,
        protection: Protection,
        limits: bool,
    ) -> Result<Lasting, SystemdError> {
        let path = format!("/org/freedesktop/systemd1/unit/{}", bus_label(self.name));
        let call = "Properties.GetAll";
        // systemd loads a unit that it does not know. Such a unit has no cgroup.
        let get = bus.call_method(
            Some(NAME),
            path.as_str(),
            Some("org.freedesktop.DBus.Properties"),
            "GetAll",
            &self.interface,
        );
        let reply = match self.answer(call, get).await {
            Err(SystemdError::Failed { error, .. }) if is_unknown(&error) => {
                return Ok(Lasting::NoUnit);
            }
            reply => reply?,
        };
        let body = reply.body();
        let properties: HashMap<&str, Variant<'_>> = body
            .deserialize()
            .map_err(|error| SystemdError::Failed { unit: self.name.to_owned(), call, error })?;
        match properties.get("ControlGroup") {
            Some(Variant::Str(path)) if path.as_str() == cgroup.path.to_string() => {}
            _ => return Ok(Lasting::NoUnit),
        }
        let numbers: HashMap<&str, u64> = properties
            .iter()
            .filter_map(|(name, value)| {
                if let Variant::U64(number) = value { Some((*name, *number)) } else { None }
            })
            .collect();

        let wanted = [("MemoryMin", protection.min.get()), ("MemoryLow", protection.low.get())];
        let is_set = wanted.iter().all(|(name, value)| numbers.get(name) == Some(value));
        if is_set && !limits {
            return Ok(Lasting::Unchanged);
        }
        // Read the files after the properties. systemd writes the files before it reads the next
        // message, so each file is at least as new as its property. In the other order, a value
        // that another program (the kubelet) sets meanwhile would be reverted.
        let carried = carried(&numbers, |file| read(cgroup, file));
        if is_set && !carried.iter().any(|(property, _)| LIMITS.contains(property)) {
            return Ok(Lasting::Unchanged);
        }
        let mut settings = wanted.to_vec();
        settings.extend(carried);
        if cgroup.is_removed() {
            return Ok(Lasting::NoUnit);
        }
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
        // systemd answers before it writes the files, but writes them before it reads the next
        // message. After the answer to this ping the files are written.
        let ping = bus.call_method(
            Some(NAME),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.DBus.Peer"),
            "Ping",
            &(),
        );
        self.answer("Peer.Ping", ping).await?;
        Ok(Lasting::Set)
    }

    async fn answer(
        &self,
        call: &'static str,
        answer: impl Future<Output = zbus::Result<Message>>,
    ) -> Result<Message, SystemdError> {
        self.answer_within(LIMIT, call, answer).await
    }

    async fn answer_within(
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

/// Returns whether an error of `GetAll` means that there is no such unit, or that no unit can have
/// this name.
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

/// Returns the properties whose files hold another value, with the value of the file.
fn carried(
    properties: &HashMap<&str, u64>,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, u64)> {
    let mut carried = Vec::new();
    for (file, property) in CARRIED {
        // A missing file means that the controller is not enabled. A missing property means that
        // this systemd version is too old for the file and does not write it.
        if let Some(text) = read(file)
            && let Some(in_force) = number(&text)
            && let Some(&value) = properties.get(property)
            && in_force != in_file(file, value)
        {
            // systemd rejects 0 for these properties. It accepts 1 byte, which is less than a page
            // and becomes 0 in the file.
            let least = u64::from(matches!(property, "MemoryHigh" | "MemoryMax"));
            carried.push((property, in_force.max(least)));
        }
    }
    // If MemoryMax is set without MemorySwapMax, systemd changes a swap limit of 0 to "max"
    // (observed with systemd 257 and 262).
    if carried.iter().any(|(property, _)| *property == "MemoryMax")
        && !carried.iter().any(|(property, _)| *property == "MemorySwapMax")
        && let Some(in_force) = read("memory.swap.max").and_then(|text| number(&text))
    {
        carried.push(("MemorySwapMax", in_force));
    }
    let (quota, period) = ("CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec");
    if let Some(text) = read("cpu.max")
        && let Some((file_quota, file_period)) = text.split_once(' ')
        && let (Some(file_quota), Some(file_period)) = (number(file_quota), number(file_period))
        && let (Some(&property_quota), Some(&property_period)) =
            (properties.get(quota), properties.get(period))
    {
        let property_period = if property_period == INFINITY { 100_000 } else { property_period };
        if file_quota == INFINITY {
            // Without a quota the period has no meaning.
            if property_quota != INFINITY {
                carried.push((quota, INFINITY));
            }
        } else if property_quota == INFINITY
            || file_period != property_period
            || file_quota != property_quota.saturating_mul(property_period) / A_SECOND
        {
            // Round up, because systemd rounds down when it computes the quota for the file.
            carried.push((quota, file_quota.saturating_mul(A_SECOND).div_ceil(file_period.max(1))));
            if file_period != property_period {
                carried.push((period, file_period));
            }
        }
    }
    carried
}

/// Returns the content of the file after systemd writes this value of its property.
fn in_file(file: &str, value: u64) -> u64 {
    let whole_pages = |value: u64| value & !(rustix::param::page_size() as u64 - 1);
    match file {
        "cpu.weight" if value == INFINITY => 100,
        "cpu.weight" | "pids.max" => value,
        _ if value >= whole_pages(i64::MAX.unsigned_abs()) => INFINITY,
        _ => whole_pages(value),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.trim_end() {
        "max" => Some(INFINITY),
        number => number.parse().ok(),
    }
}

fn read(cgroup: &Cgroup, file: &str) -> Option<String> {
    let file = open_beneath(
        &cgroup.directory,
        file,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
    )
    .ok()?;
    let mut buffer = [0; 64];
    let length = rustix::io::read(&file, &mut buffer).ok()?;
    String::from_utf8(buffer[..length].to_vec()).ok()
}

/// Lists the cgroups of pods that may have drop-ins from [`Systemd::set`].
///
/// These drop-ins outlive a unit that systemd created implicitly. An example is a slice that exists
/// only because the scope of a container named it. The kubelet and other programs create units over
/// D-Bus. The drop-ins of such a unit are in another directory, and systemd removes them.
///
/// # Errors
///
/// Fails if the directory cannot be listed. A missing directory is no error.
pub fn drop_ins(host: &Path) -> io::Result<Vec<CgroupPath>> {
    let Some(directory) = drop_in_directory(host)? else { return Ok(Vec::new()) };
    let mut cgroups = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(unit) = name.strip_suffix(".d")
            && PodCgroup::parse(unit).is_some()
            && let Ok(cgroup) = CgroupPath::of_parent(unit)
        {
            cgroups.push(cgroup);
        }
    }
    Ok(cgroups)
}

/// Removes the drop-ins that [`Systemd::set`] left for a cgroup, if this cgroup is gone. Returns
/// whether there were any.
///
/// Some of the drop-ins may belong to the kubelet. No program needs the drop-ins of a unit that is
/// gone, but a later unit with the same name would inherit them. Other files in the directory
/// remain. Symbolic links are neither followed nor removed.
///
/// # Errors
///
/// Fails if the drop-ins cannot be removed. Missing drop-ins are no error.
pub fn remove_drop_ins(host: &Path, root: &CgroupRoot, cgroup: &CgroupPath) -> io::Result<bool> {
    if !matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_))) {
        return Ok(false);
    }
    remove_files(host, cgroup, &OURS)
}

/// Removes the protection drop-ins that [`Systemd::set`] left for a cgroup that still exists.
/// Returns whether there were any.
///
/// These drop-ins override an administrator's drop-ins in `/etc`, including later ones. systemd
/// notices the removal at the next [`Systemd::reload`].
///
/// # Errors
///
/// Fails if the drop-ins cannot be removed. Missing drop-ins are no error.
pub fn remove_protection(host: &Path, cgroup: &CgroupPath) -> io::Result<bool> {
    remove_files(host, cgroup, &OF_PROTECTION)
}

fn remove_files(host: &Path, cgroup: &CgroupPath, files: &[&str]) -> io::Result<bool> {
    let Some(parent) = drop_in_directory(host)? else { return Ok(false) };
    let name = format!("{}.d", cgroup.name());
    let directory = match open_beneath(&parent, &name, DIRECTORY) {
        Err(Errno::NOENT) => return Ok(false),
        directory => directory?,
    };
    let mut removed = false;
    for &file in files {
        match rustix::fs::statat(&directory, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                rustix::fs::unlinkat(&directory, file, AtFlags::empty())?;
                removed = true;
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::NOENT) => Ok(removed),
        Err(error) => Err(error.into()),
    }
}

fn drop_in_directory(host: &Path) -> io::Result<Option<OwnedFd>> {
    let host = rustix::fs::open(host, DIRECTORY, Mode::empty())?;
    match open_beneath(&host, DROP_INS, DIRECTORY) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use plimsoll_core::units::Bytes;
    use tokio::time::advance;

    use super::fake::{Host, Mood, POD, UNIT};
    use super::*;

    fn protection(min: u64, low: u64) -> Protection {
        Protection { min: Bytes::new(min), low: Bytes::new(low) }
    }

    fn settings(settings: &[(&str, u64)]) -> Vec<(String, u64)> {
        settings.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[tokio::test]
    async fn the_protection_of_a_unit_is_set_at_runtime_in_one_call() {
        let host = Host::new().with_bus();
        let set = host
            .systemd()
            .set(&host.cgroup(POD, &[]), protection(4096, 8192), false)
            .await
            .unwrap();
        assert_eq!(set, Lasting::Set);
        let expected =
            (UNIT.to_owned(), true, settings(&[("MemoryMin", 4096), ("MemoryLow", 8192)]));
        assert_eq!(host.fake().set, [expected]);
    }

    #[tokio::test]
    async fn what_the_unit_has_already_is_not_set_again() {
        let host = Host::new().with_bus();
        let systemd = host.systemd();
        // Files that differ from their properties do not matter while the protection is already
        // set.
        let cgroup = host.cgroup(POD, &[("memory.high", "4096\n")]);
        assert_eq!(
            systemd.set(&cgroup, protection(0, 0), false).await.unwrap(),
            Lasting::Unchanged
        );
        host.fake().properties.insert("MemoryLow".to_owned(), 8192);
        assert_eq!(
            systemd.set(&cgroup, protection(0, 8192), false).await.unwrap(),
            Lasting::Unchanged
        );
        assert_eq!(
            systemd.set(&cgroup, protection(4096, 8192), false).await.unwrap(),
            Lasting::Set
        );
        assert_eq!(host.fake().set.len(), 1);
        assert_eq!(host.fake().connections, 1);
    }

    #[tokio::test]
    async fn values_that_only_files_have_are_set_along_and_no_others() {
        let host = Host::new().with_bus();
        let fresh = [
            ("memory.max", "max\n"),
            ("memory.swap.max", "max\n"),
            ("cpu.weight", "100\n"),
            ("cpu.max", "max 100000\n"),
            ("pids.max", "max\n"),
        ];
        let systemd = host.systemd();
        systemd.set(&host.cgroup(POD, &fresh), protection(0, 8192), false).await.unwrap();
        assert_eq!(
            host.fake().set.pop().unwrap().2,
            settings(&[("MemoryMin", 0), ("MemoryLow", 8192)])
        );
        let written =
            [("memory.swap.max", "0\n"), ("cpu.weight", "77\n"), ("cpu.max", "50500 100000\n")];
        // The same value as in the property, rounded down to whole pages.
        host.fake().properties.insert("MemoryMax".to_owned(), 1_000_000);
        let cgroup =
            host.cgroup(POD, &[written.as_slice(), &[("memory.max", "999424\n")]].concat());
        systemd.set(&cgroup, protection(0, 4096), false).await.unwrap();
        let carried = [("MemorySwapMax", 0), ("CPUWeight", 77), ("CPUQuotaPerSecUSec", 505_000)];
        assert_eq!(host.fake().set.pop().unwrap().2[2..], settings(&carried));
    }

    #[test]
    fn the_cpu_quota_comes_back_to_the_file_as_it_was() {
        let carried = |file: &str, quota: u64, period: u64| {
            let properties =
                HashMap::from([("CPUQuotaPerSecUSec", quota), ("CPUQuotaPeriodUSec", period)]);
            carried(&properties, |name| (name == "cpu.max").then(|| file.to_owned()))
        };
        let (quota, period) = ("CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec");
        assert_eq!(carried("max 50000\n", INFINITY, INFINITY), []);
        assert_eq!(carried("50000 100000\n", 500_000, INFINITY), []);
        assert_eq!(carried("50000 100000\n", 500_000, 100_000), []);
        assert_eq!(carried("max 100000\n", 500_000, INFINITY), [(quota, INFINITY)]);
        // runc produces this property from 0.505 processors, because runc rounds up to 1 %.
        assert_eq!(carried("50500 100000\n", 510_000, INFINITY), [(quota, 505_000)]);
        assert_eq!(
            carried("6250 50000\n", INFINITY, INFINITY),
            [(quota, 125_000), (period, 50_000)]
        );
        // 33333 of 99999 µs is a third, which is no whole number of µs per second.
        assert_eq!(carried("33333 99999\n", INFINITY, 99_999), [(quota, 333_334)]);
        assert_eq!(carried("33333 99999\n", 333_334, 99_999), []);
        for broken in ["", "max", "a b", "1 0"] {
            let _ = carried(broken, 1, 0);
        }
    }

    #[test]
    fn the_largest_amounts_of_memory_are_no_limit() {
        assert_eq!(in_file("memory.max", INFINITY), INFINITY);
        assert_eq!(in_file("memory.max", i64::MAX.unsigned_abs()), INFINITY);
        assert_eq!(in_file("memory.max", 0), 0);
        assert_eq!(in_file("pids.max", 1001), 1001);
    }

    #[tokio::test]
    async fn a_cgroup_that_no_unit_owns_is_told() {
        let host = Host::new().with_bus();
        let systemd = host.systemd();
        let plain = host.cgroup("kubepods/pod1", &[]);
        assert_eq!(systemd.set(&plain, protection(0, 1), false).await.unwrap(), Lasting::NoUnit);
        assert_eq!(host.fake().connections, 0);
        let pod = host.cgroup(POD, &[]);
        for control_group in ["", "/elsewhere.slice/kubepods-pod1_2.slice", "/kubepods.slice"] {
            host.fake().control_group = control_group;
            assert_eq!(
                systemd.set(&pod, protection(0, 1), false).await.unwrap(),
                Lasting::NoUnit,
                "{control_group}"
            );
        }
        for error in
            ["org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject"]
        {
            host.fake().mood = Mood::Error(error);
            assert_eq!(
                systemd.set(&pod, protection(0, 1), false).await.unwrap(),
                Lasting::NoUnit,
                "{error}"
            );
        }
        assert_eq!(host.fake().set, []);
    }

    #[tokio::test]
    async fn a_cgroup_that_was_removed_is_not_taken_for_its_successor() {
        let host = Host::new().with_bus();
        let cgroup = host.cgroup(POD, &[]);
        fs::remove_dir(host.directory.path().join("cgroup").join(POD)).unwrap();
        host.cgroup(POD, &[]);
        assert_eq!(
            host.systemd().set(&cgroup, protection(0, 1), false).await.unwrap(),
            Lasting::NoUnit
        );
        assert_eq!(host.fake().set, []);
    }

    #[tokio::test]
    async fn a_bus_that_never_answers_is_given_up_and_left_alone_for_a_while() {
        let host = Host::new().with_bus();
        let (systemd, cgroup) = (host.systemd(), host.cgroup(POD, &[]));
        systemd.set(&cgroup, protection(0, 1), false).await.unwrap();
        host.fake().mood = Mood::Never;
        tokio::time::pause();
        let start = Instant::now();
        let error = systemd.set(&cgroup, protection(0, 1), false).await.unwrap_err();
        assert!(
            matches!(error, SystemdError::Timeout { call: "Properties.GetAll", .. }),
            "{error}"
        );
        assert!(start.elapsed() < LIMIT + Duration::from_secs(1));
        for pause in [1, 2, 4] {
            let error = systemd.set(&cgroup, protection(0, 1), false).await.unwrap_err();
            assert!(matches!(error, SystemdError::Paused { .. }), "{error}");
            assert!(error.to_string().contains(UNIT), "{error}");
            advance(Duration::from_secs(pause)).await;
            let error = systemd.set(&cgroup, protection(0, 1), false).await.unwrap_err();
            assert!(matches!(error, SystemdError::Timeout { .. }), "{error}");
        }
        host.fake().mood = Mood::Well;
        advance(Duration::from_secs(8)).await;
        assert_eq!(systemd.set(&cgroup, protection(0, 2), false).await.unwrap(), Lasting::Set);
    }

    #[tokio::test]
    async fn a_lost_connection_is_made_anew() {
        let host = Host::new().with_bus();
        let (systemd, cgroup) = (host.systemd(), host.cgroup(POD, &[]));
        systemd.set(&cgroup, protection(0, 1), false).await.unwrap();
        for connections in [2, 3] {
            host.fake().mood = Mood::HangsUp;
            let set = systemd.set(&cgroup, protection(0, connections as u64), false).await;
            assert_eq!(set.unwrap(), Lasting::Set);
            assert_eq!(host.fake().connections, connections);
        }
    }

    #[tokio::test]
    async fn several_cgroups_share_a_connection() {
        let host = Host::new().with_bus();
        let (systemd, cgroup) = (host.systemd(), host.cgroup(POD, &[]));
        let all = futures::future::join_all(
            (1..=8).map(|low| systemd.set(&cgroup, protection(0, low), false)),
        )
        .await;
        assert!(all.iter().all(|set| matches!(set, Ok(Lasting::Set))), "{all:?}");
        assert_eq!(host.fake().set.len(), 8);
        assert_eq!(host.fake().connections, 1);
    }

    #[tokio::test]
    async fn a_refusal_and_a_missing_bus_are_told() {
        let host = Host::new();
        let cgroup = host.cgroup(POD, &[]);
        let error =
            host.systemd().set(&cgroup, protection(0, 1), false).await.unwrap_err().to_string();
        assert!(error.contains(BUS) && error.contains("is the host's /run there"), "{error}");
        let host = host.with_bus();
        for name in ["AccessDenied", "InteractiveAuthorizationRequired"] {
            let name = format!("org.freedesktop.DBus.Error.{name}");
            host.fake().mood = Mood::Error(name.leak());
            let error = host.systemd().set(&cgroup, protection(0, 1), false).await.unwrap_err();
            assert!(matches!(error, SystemdError::Denied { .. }), "{error}");
            assert!(error.to_string().contains("so it is"), "{error}");
        }
        host.fake().mood = Mood::Error("org.freedesktop.systemd1.BadUnitSetting");
        let error = host.systemd().set(&cgroup, protection(0, 1), false).await.unwrap_err();
        assert!(matches!(error, SystemdError::Failed { .. }), "{error}");
    }

    #[test]
    fn drop_ins_of_ours_are_removed_when_the_cgroup_is_gone() {
        let host = Host::new();
        assert_eq!(drop_ins(host.directory.path()).unwrap(), []);
        assert!(!host.remove_drop_ins().unwrap());
        let (min, low) = (host.drop_in(UNIT, OURS[0]), host.drop_in(UNIT, OURS[1]));
        for file in &OURS[2..] {
            host.drop_in(UNIT, file);
        }
        for other in
            ["kubepods.slice", "system.slice", "kubepods-burstable.slice", "kubepods-podx.scope"]
        {
            host.drop_in(other, OURS[0]);
        }
        assert_eq!(drop_ins(host.directory.path()).unwrap(), [CgroupPath::parse(POD).unwrap()]);
        assert!(!host.remove_drop_ins().unwrap());
        assert!(min.exists() && low.exists());
        fs::remove_dir(host.directory.path().join("cgroup").join(POD)).unwrap();
        assert!(host.remove_drop_ins().unwrap());
        assert!(!min.parent().unwrap().exists());
        assert!(!host.remove_drop_ins().unwrap());
        assert_eq!(fs::read_dir(host.directory.path().join(DROP_INS)).unwrap().count(), 4);
    }

    #[test]
    fn drop_ins_of_pods_below_a_cgroup_root_are_known() {
        let host = Host::new();
        let unit = "kubelet-kubepods-besteffort-pod1_2.slice";
        host.drop_in(unit, OURS[0]);
        assert_eq!(
            drop_ins(host.directory.path()).unwrap(),
            [CgroupPath::of_parent(unit).unwrap()]
        );
    }

    #[tokio::test]
    async fn protection_of_what_stays_is_taken_off_and_reloaded() {
        let host = Host::new().with_bus();
        let remove = |path: &str| {
            remove_protection(host.directory.path(), &CgroupPath::parse(path).unwrap()).unwrap()
        };
        assert!(!remove(POD));
        let (min, weight) = (host.drop_in(UNIT, OURS[0]), host.drop_in(UNIT, "50-CPUWeight.conf"));
        assert!(remove(POD), "though the cgroup is there");
        assert!(!min.exists() && weight.exists());
        assert!(!remove(POD));
        let system = host.drop_in("system.slice", OURS[1]);
        assert!(remove("system.slice"));
        assert!(!system.parent().unwrap().exists());
        host.systemd().reload().await.unwrap();
        assert_eq!(host.fake().reloads, 1);
        host.fake().mood = Mood::Error("org.freedesktop.DBus.Error.AccessDenied");
        let error = host.systemd().reload().await.unwrap_err();
        assert!(matches!(error, SystemdError::Denied { call: "Reload", .. }), "{error}");
    }

    #[test]
    fn drop_ins_of_others_and_symbolic_links_are_left() {
        let host = Host::new();
        fs::remove_dir(host.directory.path().join("cgroup").join(POD)).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(OURS[0]), "").unwrap();
        let (min, other) = (host.drop_in(UNIT, OURS[0]), host.drop_in(UNIT, "50-IOWeight.conf"));
        symlink(outside.path().join(OURS[0]), min.with_file_name(OURS[1])).unwrap();
        assert!(host.remove_drop_ins().unwrap());
        assert!(!min.exists() && other.exists() && min.with_file_name(OURS[1]).is_symlink());
        fs::remove_dir_all(min.parent().unwrap()).unwrap();
        symlink(outside.path(), min.parent().unwrap()).unwrap();
        assert!(host.remove_drop_ins().is_err());
        assert!(outside.path().join(OURS[0]).exists());
    }

    #[test]
    fn names_are_escaped_as_systemd_does() {
        assert_eq!(bus_label("kubepods-pod1_2.slice"), "kubepods_2dpod1_5f2_2eslice");
        assert_eq!(bus_label("1a.slice"), "_31a_2eslice");
    }
}
