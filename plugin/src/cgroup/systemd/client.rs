//! Client of the host's systemd: the connection, and the back-off after failures.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::policy::Protection;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zbus::{Connection, connection::Builder};

use super::error::SystemdError;
use super::unit::{LIMIT, NAME, Persistence, Unit};
use crate::cgroup::directory::Cgroup;

pub(super) const BUS: &str = "run/dbus/system_bus_socket";

/// Timeout of a reload call, which makes systemd read all unit files again.
const RELOAD: Duration = Duration::from_secs(60);

/// Client of the host's systemd. The client connects when a call first needs a connection, and
/// reconnects after the connection is lost.
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
    /// End of the back-off, and the last failure.
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
    /// The caller should first write the values to the files, because systemd writes them later.
    ///
    /// Calls for several cgroups may run concurrently. Each call asks systemd which cgroup the unit
    /// owns now, because an earlier answer may be about a removed cgroup. This needs no extra D-Bus
    /// call.
    ///
    /// # Errors
    ///
    /// Fails if systemd denies the call, is unreachable or does not answer in time. If systemd is
    /// unreachable or does not answer, the client backs off. The back-off doubles with each
    /// consecutive failure, from 1 second to 64 seconds.
    pub async fn set(
        &self,
        cgroup: &Cgroup,
        protection: Protection,
        limits: bool,
    ) -> Result<Persistence, SystemdError> {
        let Some(unit) = Unit::of(&cgroup.path) else { return Ok(Persistence::NoUnit) };
        let bus = self.bus(None).await?;
        let mut result = unit.set(&bus, cgroup, protection, limits).await;
        if matches!(result, Err(SystemdError::Lost { .. })) {
            // systemd was re-executed, or dbus was restarted. A second write of the same values
            // does no harm.
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

    /// Makes systemd read all unit files again, for instance after
    /// [`remove_protection`](super::remove_protection).
    ///
    /// # Errors
    ///
    /// Fails if systemd denies the call, is unreachable or does not answer within a minute.
    pub async fn reload(&self) -> Result<(), SystemdError> {
        let bus = self.bus(None).await?;
        let result = reload(&bus).await;
        if matches!(result, Err(SystemdError::Lost { .. })) {
            // systemd was re-executed, or dbus was restarted. A second reload does no harm.
            return reload(&*self.bus(Some(&bus)).await?).await;
        }
        result
    }

    /// Returns the connection. Connects again if the connection is closed, or if the caller passes
    /// this connection as `lost`.
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
        // Count concurrent calls that fail together as one failure.
        let now = Instant::now();
        if self.pause.as_ref().is_none_or(|(until, _)| *until <= now) {
            let pause = Duration::from_secs(1 << self.failures.min(6));
            self.failures += 1;
            self.pause = Some((now + pause, error.to_string()));
        }
        self.bus = None;
    }
}

/// Makes systemd read all unit files again.
async fn reload(bus: &Connection) -> Result<(), SystemdError> {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_core::pod::CgroupPath;
    use plimsoll_core::units::Bytes;
    use tokio::time::advance;

    use super::super::drop_ins::{OURS, remove_protection};
    use super::super::fake::{Host, Mood, POD, UNIT};
    use super::*;

    fn protection(min: u64, low: u64) -> Protection {
        Protection { min: Bytes::new(min), low: Bytes::new(low) }
    }

    fn settings(settings: &[(&str, u64)]) -> Vec<(String, u64)> {
        settings.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[tokio::test]
    async fn one_runtime_call_sets_min_and_low() {
        let host = Host::new().with_bus();
        let set = host
            .systemd()
            .set(&host.cgroup(POD, &[]), protection(4096, 8192), false)
            .await
            .unwrap();
        assert_eq!(set, Persistence::Set);
        let expected =
            (UNIT.to_owned(), true, settings(&[("MemoryMin", 4096), ("MemoryLow", 8192)]));
        assert_eq!(host.fake().set, [expected]);
    }

    #[tokio::test]
    async fn protection_equal_to_properties_is_not_set() {
        let host = Host::new().with_bus();
        let systemd = host.systemd();
        // memory.high differs from its property, but the unit already has the protection.
        let cgroup = host.cgroup(POD, &[("memory.high", "4096\n")]);
        assert_eq!(
            systemd.set(&cgroup, protection(0, 0), false).await.unwrap(),
            Persistence::Unchanged
        );
        host.fake().properties.insert("MemoryLow".to_owned(), 8192);
        assert_eq!(
            systemd.set(&cgroup, protection(0, 8192), false).await.unwrap(),
            Persistence::Unchanged
        );
        assert_eq!(
            systemd.set(&cgroup, protection(4096, 8192), false).await.unwrap(),
            Persistence::Set
        );
        assert_eq!(host.fake().set.len(), 1);
        assert_eq!(host.fake().connections, 1);
    }

    #[tokio::test]
    async fn set_carries_only_file_values_systemd_lacks() {
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
        // memory.max has the value of MemoryMax, rounded down to whole pages.
        host.fake().properties.insert("MemoryMax".to_owned(), 1_000_000);
        let cgroup =
            host.cgroup(POD, &[written.as_slice(), &[("memory.max", "999424\n")]].concat());
        systemd.set(&cgroup, protection(0, 4096), false).await.unwrap();
        let carried = [("MemorySwapMax", 0), ("CPUWeight", 77), ("CPUQuotaPerSecUSec", 505_000)];
        assert_eq!(host.fake().set.pop().unwrap().2[2..], settings(&carried));
    }

    #[tokio::test]
    async fn unowned_cgroups_report_no_unit() {
        let host = Host::new().with_bus();
        let systemd = host.systemd();
        let plain = host.cgroup("kubepods/pod1", &[]);
        assert_eq!(
            systemd.set(&plain, protection(0, 1), false).await.unwrap(),
            Persistence::NoUnit
        );
        assert_eq!(host.fake().connections, 0);
        let pod = host.cgroup(POD, &[]);
        for control_group in ["", "/elsewhere.slice/kubepods-pod1_2.slice", "/kubepods.slice"] {
            host.fake().control_group = control_group;
            assert_eq!(
                systemd.set(&pod, protection(0, 1), false).await.unwrap(),
                Persistence::NoUnit,
                "{control_group}"
            );
        }
        for error in
            ["org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject"]
        {
            host.fake().mood = Mood::Error(error);
            assert_eq!(
                systemd.set(&pod, protection(0, 1), false).await.unwrap(),
                Persistence::NoUnit,
                "{error}"
            );
        }
        assert_eq!(host.fake().set, []);
    }

    #[tokio::test]
    async fn removed_cgroups_never_set_their_successors_unit() {
        let host = Host::new().with_bus();
        let cgroup = host.cgroup(POD, &[]);
        fs::remove_dir(host.directory.path().join("cgroup").join(POD)).unwrap();
        host.cgroup(POD, &[]);
        assert_eq!(
            host.systemd().set(&cgroup, protection(0, 1), false).await.unwrap(),
            Persistence::NoUnit
        );
        assert_eq!(host.fake().set, []);
    }

    #[tokio::test]
    async fn silent_bus_timeouts_cause_doubling_pauses() {
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
        assert_eq!(systemd.set(&cgroup, protection(0, 2), false).await.unwrap(), Persistence::Set);
    }

    #[tokio::test]
    async fn a_lost_connection_is_made_anew() {
        let host = Host::new().with_bus();
        let (systemd, cgroup) = (host.systemd(), host.cgroup(POD, &[]));
        systemd.set(&cgroup, protection(0, 1), false).await.unwrap();
        for connections in [2, 3] {
            host.fake().mood = Mood::HangsUp;
            let set = systemd.set(&cgroup, protection(0, connections as u64), false).await;
            assert_eq!(set.unwrap(), Persistence::Set);
            assert_eq!(host.fake().connections, connections);
        }
    }

    #[tokio::test]
    async fn a_reload_reconnects_after_a_lost_connection() {
        let host = Host::new().with_bus();
        let systemd = host.systemd();
        systemd.reload().await.unwrap();
        host.fake().mood = Mood::HangsUp;
        systemd.reload().await.unwrap();
        assert_eq!(host.fake().reloads, 2);
        assert_eq!(host.fake().connections, 2);
    }

    #[tokio::test]
    async fn several_cgroups_share_a_connection() {
        let host = Host::new().with_bus();
        let (systemd, cgroup) = (host.systemd(), host.cgroup(POD, &[]));
        let all = futures::future::join_all(
            (1..=8).map(|low| systemd.set(&cgroup, protection(0, low), false)),
        )
        .await;
        assert!(all.iter().all(|set| matches!(set, Ok(Persistence::Set))), "{all:?}");
        assert_eq!(host.fake().set.len(), 8);
        assert_eq!(host.fake().connections, 1);
    }

    #[tokio::test]
    async fn errors_distinguish_missing_bus_denial_and_failure() {
        let host = Host::new();
        let cgroup = host.cgroup(POD, &[]);
        let error =
            host.systemd().set(&cgroup, protection(0, 1), false).await.unwrap_err().to_string();
        assert!(
            error.contains(BUS) && error.contains("check that the host's /run is mounted"),
            "{error}"
        );
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

    #[tokio::test]
    async fn existing_units_lose_only_protection_drop_ins() {
        let host = Host::new().with_bus();
        let remove = |path: &str| {
            remove_protection(host.directory.path(), &CgroupPath::parse(path).unwrap()).unwrap()
        };
        assert!(!remove(POD));
        let (min, weight) = (host.drop_in(UNIT, OURS[0]), host.drop_in(UNIT, "50-CPUWeight.conf"));
        assert!(remove(POD), "systemd's drop-ins are removed although the cgroup exists");
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
}
