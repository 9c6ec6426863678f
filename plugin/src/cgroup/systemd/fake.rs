//! Fake systemd on its own bus for tests, with one unit: the slice of a pod.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::StreamExt as _;
use plimsoll_core::pod::CgroupPath;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use zbus::message::Type;
use zbus::{Connection, Guid, Message, Variant, connection::Builder};

use super::client::{BUS, Systemd};
use super::drop_ins::{DROP_INS, remove_drop_ins};
use super::properties::{CARRIED, INFINITY};
use super::unit::NAME;
use crate::cgroup::{Cgroup, CgroupRoot};

pub(crate) const POD: &str = "kubepods.slice/kubepods-pod1_2.slice";
pub(crate) const UNIT: &str = "kubepods-pod1_2.slice";

/// Behavior of the fake.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Well,
    /// Answers, and then waits for a permit of [`Fake::writes`] before it writes the files.
    Late,
    Never,
    /// Closes the connection once instead of answering.
    HangsUp,
    Error(&'static str),
}

/// Arguments of a SetUnitProperties call: unit, runtime, settings.
pub(crate) type Call = (String, bool, Vec<(String, u64)>);

pub(crate) struct Fake {
    pub(crate) mood: Mood,
    pub(crate) control_group: &'static str,
    pub(crate) properties: HashMap<String, u64>,
    pub(crate) connections: usize,
    /// Arguments of all SetUnitProperties calls.
    pub(crate) set: Vec<Call>,
    /// Number of Reload calls.
    pub(crate) reloads: usize,
    pub(crate) writes: Arc<Semaphore>,
}

/// Host with a cgroup hierarchy. [`Host::with_bus`] adds a bus on which the fake systemd is the
/// only service.
pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    fake: Arc<Mutex<Fake>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("cgroup")).unwrap();
        fs::write(directory.path().join("cgroup/cgroup.controllers"), "memory\n").unwrap();
        let names = CARRIED.map(|(_, property)| property);
        let names = names.into_iter().chain(["CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"]);
        let properties =
            names.map(|name| (name, INFINITY)).chain([("MemoryMin", 0), ("MemoryLow", 0)]);
        let properties = properties.map(|(name, value)| (name.to_owned(), value)).collect();
        let control_group = "/kubepods.slice/kubepods-pod1_2.slice";
        let (set, writes) = (Vec::new(), Arc::new(Semaphore::new(0)));
        let fake = Fake {
            mood: Mood::Well,
            control_group,
            properties,
            connections: 0,
            set,
            reloads: 0,
            writes,
        };
        let host = Self { directory, fake: Arc::new(Mutex::new(fake)) };
        host.cgroup(POD, &[]);
        host
    }

    pub(crate) fn with_bus(self) -> Self {
        let socket = self.directory.path().join(BUS);
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let (fake, cgroups) = (Arc::clone(&self.fake), self.directory.path().join("cgroup"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                fake.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, Arc::clone(&fake), cgroups.clone()));
            }
        });
        self
    }

    pub(crate) fn root(&self) -> CgroupRoot {
        CgroupRoot::open(&self.directory.path().join("cgroup")).unwrap()
    }

    pub(crate) fn cgroup(&self, path: &str, files: &[(&str, &str)]) -> Cgroup {
        let directory = self.directory.path().join("cgroup").join(path);
        fs::create_dir_all(&directory).unwrap();
        for (name, content) in files {
            fs::write(directory.join(name), content).unwrap();
        }
        self.root().cgroup(&CgroupPath::parse(path).unwrap()).unwrap()
    }

    pub(crate) fn systemd(&self) -> Systemd {
        Systemd::new(self.directory.path())
    }

    pub(crate) fn fake(&self) -> MutexGuard<'_, Fake> {
        self.fake.lock().unwrap()
    }

    pub(crate) fn drop_in(&self, unit: &str, file: &str) -> PathBuf {
        let directory = self.directory.path().join(DROP_INS).join(format!("{unit}.d"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(file), "[Slice]\n").unwrap();
        directory.join(file)
    }

    pub(crate) fn remove_drop_ins(&self) -> io::Result<bool> {
        remove_drop_ins(self.directory.path(), &self.root(), &CgroupPath::parse(POD).unwrap())
    }
}

async fn serve(stream: UnixStream, fake: Arc<Mutex<Fake>>, cgroups: PathBuf) {
    let builder = Builder::unix_stream(stream.into_std().unwrap()).server(Guid::generate()).p2p();
    let mut messages = builder.build_message_stream().await.unwrap();
    let connection = Connection::from(&messages);
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() == Type::MethodCall
            && answer(&connection, &message, &fake, &cgroups).await.is_none()
        {
            return;
        }
    }
}

/// Answers a message. Returns `None` to close the connection.
async fn answer(
    connection: &Connection,
    message: &Message,
    fake: &Mutex<Fake>,
    cgroups: &Path,
) -> Option<()> {
    let header = message.header();
    let member = header.member()?.to_string();
    if member == "Hello" {
        return connection.reply(&header, &":1.7").await.ok();
    }
    assert_eq!(header.destination()?.as_str(), NAME);
    let mood = fake.lock().unwrap().mood;
    match mood {
        Mood::Well | Mood::Late => {}
        Mood::Never => return Some(()),
        Mood::HangsUp => {
            fake.lock().unwrap().mood = Mood::Well;
            return None;
        }
        Mood::Error(name) => return connection.reply_error(&header, name, &"so it is").await.ok(),
    }
    match member.as_str() {
        "GetAll" => all_properties(connection, message, fake).await,
        "Reload" => {
            fake.lock().unwrap().reloads += 1;
            connection.reply(&header, &()).await.ok()
        }
        "Ping" => connection.reply(&header, &()).await.ok(),
        "SetUnitProperties" => set_properties(connection, message, fake, cgroups).await,
        other => panic!("{other}"),
    }
}

/// Answers GetAll with the properties of the unit.
async fn all_properties(
    connection: &Connection,
    message: &Message,
    fake: &Mutex<Fake>,
) -> Option<()> {
    let header = message.header();
    if header.path()?.as_str() != "/org/freedesktop/systemd1/unit/kubepods_2dpod1_5f2_2eslice" {
        let error = "org.freedesktop.systemd1.NoSuchUnit";
        return connection.reply_error(&header, error, &"").await.ok();
    }
    let body = message.body();
    assert_eq!(body.deserialize::<&str>().unwrap(), "org.freedesktop.systemd1.Slice");
    let (numbers, control_group) = {
        let fake = fake.lock().unwrap();
        (fake.properties.clone(), fake.control_group)
    };
    let mut properties: HashMap<&str, Variant<'_>> =
        numbers.iter().map(|(name, value)| (name.as_str(), Variant::U64(*value))).collect();
    properties.insert("ControlGroup", Variant::from(control_group));
    connection.reply(&header, &properties).await.ok()
}

/// Answers SetUnitProperties and then writes the files.
async fn set_properties(
    connection: &Connection,
    message: &Message,
    fake: &Mutex<Fake>,
    cgroups: &Path,
) -> Option<()> {
    let header = message.header();
    let body = message.body();
    let (unit, runtime, settings): (String, bool, Vec<(String, Variant<'_>)>) =
        body.deserialize().unwrap();
    let number =
        |value| if let Variant::U64(number) = value { number } else { panic!("{value:?}") };
    let settings: Vec<_> =
        settings.into_iter().map(|(name, value)| (name, number(value))).collect();
    let (writes, mood) = {
        let mut fake = fake.lock().unwrap();
        fake.properties.extend(settings.clone());
        fake.set.push((unit, runtime, settings.clone()));
        (fake.writes.clone(), fake.mood)
    };
    connection.reply(&header, &()).await.ok()?;
    if mood == Mood::Late {
        writes.acquire().await.ok()?.forget();
    }
    for (property, file) in [("MemoryMin", "memory.min"), ("MemoryLow", "memory.low")] {
        if let Some((_, value)) = settings.iter().find(|(name, _)| name == property) {
            fs::write(cgroups.join(POD).join(file), format!("{value}\n")).unwrap();
        }
    }
    Some(())
}
