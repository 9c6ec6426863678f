//! Connect, register, serve, reconnect.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::{StreamExt as _, stream};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};

use crate::api::{ContainerUpdate, RegisterPluginRequest, UpdateContainersRequest};
use crate::generated::nri_ttrpc::{RuntimeClient, create_plugin};
use crate::launch::Launched;
use crate::mux::Mux;
use crate::plugin::{Plugin, Refusal};
use crate::service::{Progress, Service, in_event};
use crate::version::NriVersion;

/// Where runtimes listen for plugins by default.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// NRI's default for the time that a runtime waits for a registration; as long is waited for the runtime here.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the first synchronisation. Before NRI 0.12 a runtime that fails to gather its pods and containers
/// leaves the connection open, but never sends an event over it.
const SYNCHRONIZE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a plugin that was launched waits for another instance to go before it tells the runtime, which waits for it
/// and for nothing else meanwhile.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection has to last for the next one to be tried without delay. A plugin that is dropped for being slow
/// would else stall its node again at once.
const LASTING: Duration = Duration::from_secs(60);

/// Why a plugin cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plugin refused its configuration.
    #[error("{0}")]
    Configure(Refusal),
    /// The lock that keeps two instances apart cannot be had.
    #[error("cannot lock {}, which keeps two instances of a plugin apart: {error}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// The connection that the runtime handed over cannot be used.
    #[error("cannot use the connection that the runtime handed over: {0}")]
    Connection(io::Error),
}

/// Why containers could not be updated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// There is no runtime at the moment.
    #[error("not connected to a runtime")]
    NotConnected,
    /// Called while handling an event. The runtime holds its lock then and would wait for itself.
    #[error("containers cannot be updated from within an event, leave it to a task")]
    InEvent,
    /// The runtime could not do it. Some of the updates may have been applied.
    #[error("the runtime failed to update containers: {0}")]
    Runtime(String),
}

/// A plugin's index and name, which together identify it to the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    index: String,
    name: String,
}

/// Index or name of a plugin that no runtime accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIdentity {
    /// The index is not two digits.
    #[error("{0:?} is not a plugin index, expected two digits as in 90")]
    Index(String),
    /// The name is empty or has characters that are not allowed.
    #[error("{0:?} is not a plugin name, expected letters, digits and any of _ . + -")]
    Name(String),
}

impl Identity {
    /// A plugin's index, two digits by which plugins are ordered, and its name, `[a-zA-Z0-9_.+-]+`.
    ///
    /// # Errors
    ///
    /// When one of them has another form.
    pub fn new(index: impl Into<String>, name: impl Into<String>) -> Result<Self, InvalidIdentity> {
        let (index, name) = (index.into(), name.into());
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidIdentity::Index(index));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(InvalidIdentity::Name(name));
        }
        Ok(Self { index, name })
    }
}

impl Identity {
    /// What a runtime calls a plugin that it launched, whatever that is: it insists on that itself.
    pub(crate) fn given_by_runtime(index: String, name: String) -> Self {
        Self { index, name }
    }

    /// The two digits.
    pub fn index(&self) -> &str {
        &self.index
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

/// The runtime, for what a plugin asks of it on its own account.
///
/// Stays valid across reconnections.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    client: Arc<Mutex<Option<RuntimeClient>>>,
    /// Go's ttrpc closes a connection on which requests arrive out of order, so there is one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    renewal: Arc<Notify>,
}

impl fmt::Debug for RuntimeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeClient")
    }
}

impl Runtime {
    /// Changes running containers. Returns the updates that the runtime reports as failed, beside success of the rest.
    ///
    /// Success need not mean that all was applied: containerd does not report a failure of an update that has
    /// `ignore_failure`, and fails the whole for one that has not, after which the rest is not tried. Look at what the
    /// kernel has.
    ///
    /// Waits for as long as the runtime takes, which includes its waiting for events under way; drop the future to give up.
    /// No plugin gets an UpdateContainer event for these.
    ///
    /// # Errors
    ///
    /// Without a connection, within an event, and when the runtime fails. After a failure it is not known which of the
    /// updates were applied.
    pub async fn update_containers(
        &self,
        update: Vec<ContainerUpdate>,
    ) -> Result<Vec<ContainerUpdate>, UpdateError> {
        if in_event() {
            return Err(UpdateError::InEvent);
        }
        let _turn = self.turn.lock().await;
        let client = self.client().ok_or(UpdateError::NotConnected)?;
        let request = UpdateContainersRequest { update, ..Default::default() };
        match client.update_containers(ttrpc::context::Context::default(), &request).await {
            Ok(response) => Ok(response.failed),
            Err(ttrpc::Error::RpcStatus(status)) => Err(UpdateError::Runtime(status.message)),
            Err(error) => Err(UpdateError::Runtime(error.to_string())),
        }
    }

    /// Gives up the connection and makes a new one, over which the runtime tells of all pods and containers anew. For a plugin
    /// that finds that it has missed something. Without a connection nothing happens, as one is being made anyway.
    pub fn reconnect(&self) {
        self.renewal.notify_waiters();
    }

    fn client(&self) -> Option<RuntimeClient> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, client: Option<RuntimeClient>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

impl Launched {
    /// Answers the runtime on behalf of a plugin that cannot run, and goes. To be called before giving up: NRI before 0.7
    /// does not start, and containerd with it, when a plugin that it launched ends without having registered.
    pub async fn decline(self) {
        let identity = self.identity.clone();
        if let Some(Ok(connection)) = self.connection.map(connection) {
            decline(identity, Arc::default(), Some(connection)).await;
        }
    }
}

/// The connection that a runtime handed over.
fn connection(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let connection = std::os::unix::net::UnixStream::from(descriptor);
    connection.set_nonblocking(true)?;
    UnixStream::from_std(connection)
}

/// Registers and goes, without a word to any plugin; keeps the drop-in file that comes with the answer. NRI before 0.7 does
/// not start when a plugin that it launched does not register.
async fn decline(
    identity: Identity,
    drop_in: Arc<OnceLock<String>>,
    connection: Option<UnixStream>,
) {
    struct Absent;
    impl Plugin for Absent {
        fn events(&self) -> crate::EventMask {
            crate::EventMask::NONE
        }
        async fn configure(&self, _: crate::Configuration) -> Result<(), Refusal> {
            Err(Refusal::new("declined"))
        }
    }
    let Some(connection) = connection else { return };
    let absent = Stub { drop_in, ..Stub::external(identity, Absent) };
    absent.session(connection, true, std::future::pending()).await;
}

/// Keeps a plugin connected to its runtime.
///
/// See the [crate documentation](crate) for an example.
#[derive(Debug)]
pub struct Stub<P> {
    plugin: Arc<P>,
    identity: Identity,
    launched: Option<Launched>,
    socket: PathBuf,
    runtime: Runtime,
    drop_in: Arc<OnceLock<String>>,
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    Refused(Refusal),
    Closed {
        reason: String,
        was_synchronized: bool,
    },
    /// There was none.
    Unreachable(io::Error),
    /// A better connection is there.
    Replaced(UnixStream),
}

impl<P: Plugin> Stub<P> {
    /// A plugin that connects to the runtime's socket.
    pub fn external(identity: Identity, plugin: P) -> Self {
        Self {
            plugin: Arc::new(plugin),
            identity,
            launched: None,
            socket: DEFAULT_SOCKET.into(),
            runtime: Runtime::default(),
            drop_in: Arc::default(),
        }
    }

    /// A plugin that the runtime launched.
    pub fn launched(launched: Launched, plugin: P) -> Self {
        let identity = launched.identity.clone();
        Self { launched: Some(launched), ..Self::external(identity, plugin) }
    }

    /// The runtime's socket, [`DEFAULT_SOCKET`] if not set. Plugins that were launched come back over it, too.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = path.into();
        self
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<P> {
        &self.plugin
    }

    /// What the plugin can ask of the runtime.
    pub fn runtime(&self) -> Runtime {
        self.runtime.clone()
    }

    /// Runs the plugin. Drop the future to stop it.
    ///
    /// A connection that is lost is made again after a while: 100 ms at first, doubled each time up to 15 s, and up to twice
    /// that at random so that the plugins of a node do not come all at once. A socket that is not there is looked for
    /// every second or two.
    ///
    /// Two instances of a plugin on a node would fail every creation of a container, since both set the same values. So an
    /// instance locks a file beside the runtime's socket, `NAME.lock`, and while another one holds it, waits: as long as
    /// that takes. The index plays no part in it.
    ///
    /// Returns `Ok` only for a plugin that was launched, when the runtime that launched it has ended: the next one
    /// launches its own.
    ///
    /// # Errors
    ///
    /// When the plugin refuses its configuration, or the lock file cannot be used.
    pub async fn run(mut self) -> Result<(), Error> {
        let Some(launched) = self.launched.take() else {
            let _lock = self.lock_instance()?.wait().await?;
            return self.serve(None).await;
        };
        let runtime = launched.runtime.and_then(watch);
        let mut connection =
            launched.connection.map(connection).transpose().map_err(Error::Connection)?;
        let serve = async {
            let lock = match self.lock_instance() {
                Ok(lock) => lock,
                Err(error) => {
                    decline(self.identity.clone(), self.drop_in.clone(), connection.take()).await;
                    return Err(error);
                }
            };
            let mut lock = pin!(lock.wait());
            // The instance of a runtime that has just ended is about to go.
            let held = match timeout(LOCK_PATIENCE, &mut lock).await {
                Ok(held) => held,
                Err(_) => {
                    decline(self.identity.clone(), self.drop_in.clone(), connection.take()).await;
                    lock.await
                }
            };
            let _lock = held?;
            self.serve(connection).await
        };
        tokio::select! {
            result = serve => result,
            () = ended(runtime) => {
                info!(plugin = %self.identity, "the runtime that launched this plugin has ended");
                Ok(())
            }
        }
    }

    async fn serve(&self, mut launched: Option<UnixStream>) -> Result<(), Error> {
        let mut delays = delays(Duration::from_secs(15));
        // A socket at which nobody listens costs the runtime nothing.
        let mut knocks = self::delays(Duration::from_secs(1));
        let mut replacement = None;
        let mut told = false;
        loop {
            let began = Instant::now();
            let end = if let Some(connection) = launched.take() {
                self.session(connection, true, self.replacement_for_unsynchronized()).await
            } else {
                let connection = match replacement.take() {
                    Some(connection) => Ok(connection),
                    None => UnixStream::connect(&self.socket).await,
                };
                match connection {
                    Ok(connection) => self.session(connection, false, std::future::pending()).await,
                    Err(error) => End::Unreachable(error),
                }
            };
            match end {
                End::Refused(refusal) => return Err(Error::Configure(refusal)),
                End::Replaced(connection) => replacement = Some(connection),
                End::Unreachable(error) => {
                    // One line for a loss, not one for each try.
                    if !told {
                        warn!(socket = %self.socket.display(), %error, "cannot connect to the runtime, trying again");
                        told = true;
                    }
                    tokio::time::sleep(knocks.next().unwrap_or(LASTING)).await;
                }
                End::Closed { reason, was_synchronized } => {
                    if was_synchronized && began.elapsed() >= LASTING {
                        delays = self::delays(Duration::from_secs(15));
                        told = false;
                    }
                    knocks = self::delays(Duration::from_secs(1));
                    let delay = delays.next().unwrap_or(LASTING);
                    if told && !was_synchronized {
                        debug!(reason, ?delay, "still not connected to the runtime");
                    } else {
                        warn!(reason, ?delay, "connection to the runtime lost, trying again");
                        told = true;
                    }
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Serves one connection until it ends. Nothing of it is left when this returns.
    async fn session<T>(
        &self,
        trunk: T,
        launched: bool,
        replacement: impl Future<Output = UnixStream>,
    ) -> End
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mux, plugin_conn, runtime_conn) = Mux::new(trunk);
        let (progress, watched) = watch::channel(Progress::Connected);
        let service = Service::new(self.plugin.clone(), launched, self.drop_in.clone(), progress);
        // A listener that has ended would make the server panic when it is shut down.
        let connections = stream::iter([io::Result::Ok(plugin_conn)]).chain(stream::pending());
        let mut server = Server::new()
            .register_service(create_plugin(Arc::new(service)))
            .add_listener(Listener::new(connections));
        let started = server.start().await;
        let client = RuntimeClient::new(Client::new(Socket::new(runtime_conn)));
        let mut seen = watched.clone();

        let end = match started {
            Err(error) => closed(format!("cannot serve: {error}")),
            Ok(()) => tokio::select! {
                biased;
                reason = mux.closed() => closed(reason.to_string()),
                () = self.runtime.renewal.notified() => closed("the plugin wants to be told of everything anew".to_owned()),
                end = self.converse(&mux, &client, watched, launched, replacement) => end,
            },
        };

        self.runtime.set(None);
        mux.close();
        // Waits until handlers under way are dropped.
        if let Err(error) = server.shutdown().await {
            debug!(%error, "the connection's server did not stop in time");
        }
        let last = seen.borrow_and_update().clone();
        if last != Progress::Connected {
            self.plugin.disconnected().await;
        }
        match end {
            End::Closed { reason, .. } => {
                End::Closed { reason, was_synchronized: last == Progress::Synchronized }
            }
            end => end,
        }
    }

    /// Registers, and judges what comes of it. Does not return while all is well.
    async fn converse(
        &self,
        mux: &Mux,
        client: &RuntimeClient,
        mut progress: watch::Receiver<Progress>,
        launched: bool,
        replacement: impl Future<Output = UnixStream>,
    ) -> End {
        let register = RegisterPluginRequest {
            plugin_name: self.identity.name.clone(),
            plugin_idx: self.identity.index.clone(),
            NRI_version: NriVersion::NEWEST.to_string(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(REGISTRATION_TIMEOUT);
        if let Err(error) = client.register_plugin(context, &register).await {
            return closed(format!("cannot register as {}: {error}", self.identity));
        }
        // The senders live in the service, which the server keeps until it is disconnected.
        let gone = |_| closed("the service ended".to_owned());
        let configured = progress.wait_for(|p| *p != Progress::Connected);
        let configured = match timeout(REGISTRATION_TIMEOUT, configured).await {
            Ok(Ok(progress)) => progress.clone(),
            Ok(Err(error)) => return gone(error),
            Err(_) => {
                return closed(format!(
                    "the runtime sent no Configure within {REGISTRATION_TIMEOUT:?}"
                ));
            }
        };
        let version = match configured {
            Progress::Refused(refusal) => {
                // The first message over this connection is the answer to Configure, without which NRI 0.6.1 does not start.
                mux.plugin_messages_sent(1).await;
                return End::Refused(refusal);
            }
            Progress::Configured(version) => version,
            // Synchronize overtook the look.
            _ => None,
        };
        self.runtime.set(Some(client.clone()));

        if launched && version.is_some_and(|version| version < NriVersion::SYNCHRONIZES_LAUNCHED) {
            return End::Replaced(replacement.await);
        }
        let settled =
            progress.wait_for(|p| matches!(p, Progress::Synchronized | Progress::Forgotten(_)));
        match timeout(SYNCHRONIZE_TIMEOUT, settled).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return gone(error),
            Err(_) => {
                return closed(format!(
                    "the runtime sent no Synchronize within {SYNCHRONIZE_TIMEOUT:?}"
                ));
            }
        }
        if *progress.borrow() == Progress::Synchronized {
            info!(plugin = %self.identity, "connected to the runtime and synchronized");
        }
        match progress.wait_for(|p| matches!(p, Progress::Forgotten(_))).await {
            Ok(forgotten) => match &*forgotten {
                Progress::Forgotten(reason) => closed(format!("synchronization failed: {reason}")),
                _ => closed("synchronization failed".to_owned()),
            },
            Err(error) => gone(error),
        }
    }

    /// NRI before 0.7 does not tell a plugin that it launched which pods and containers exist, but one that comes over the
    /// socket. It listens there only after all launched plugins are up.
    async fn replacement_for_unsynchronized(&self) -> UnixStream {
        for delay in delays(Duration::from_secs(1)) {
            match UnixStream::connect(&self.socket).await {
                Ok(connection) => return connection,
                Err(error) => {
                    debug!(socket = %self.socket.display(), %error, "not there yet, trying again")
                }
            }
            tokio::time::sleep(delay).await;
        }
        std::future::pending().await
    }

    fn lock_instance(&self) -> Result<InstanceLock, Error> {
        let directory = self.socket.parent().unwrap_or(Path::new("/"));
        let path = directory.join(format!("{}.lock", self.identity.name));
        let failed = |error: io::Error| Error::Lock { path: path.clone(), error };
        // As the runtime makes it.
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        let held = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(error) => return Err(failed(error.into())),
        };
        Ok(InstanceLock { path, file, held })
    }
}

/// A growing and randomly varied delay, without end.
fn delays(longest: Duration) -> impl Iterator<Item = Duration> {
    let delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(longest);
    delays.with_jitter().without_max_times().build()
}

/// A descriptor of a process, if it can be waited for.
fn watch(process: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, and nothing takes it out or replaces it.
    #[allow(unsafe_code)]
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.ok()
}

/// Waits until a process has ended, for ever if it is not known which.
async fn ended(process: Option<AsyncFd<OwnedFd>>) {
    if let Some(process) = process
        && process.readable().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn closed(reason: String) -> End {
    End::Closed { reason, was_synchronized: false }
}

/// The lock that keeps two instances of a plugin apart. The kernel frees it with the process that holds it.
#[derive(Debug)]
struct InstanceLock {
    path: PathBuf,
    file: File,
    held: bool,
}

impl InstanceLock {
    async fn wait(mut self) -> Result<Self, Error> {
        if self.held {
            return Ok(self);
        }
        warn!(lock = %self.path.display(), "another instance of this plugin is running, waiting until it ends");
        let failed = |error| Error::Lock { path: self.path.clone(), error };
        let file = self.file.try_clone().map_err(failed)?;
        let (done, locked) = oneshot::channel();
        // A thread of its own: tokio waits for its blocking threads when it stops, and this one may never return.
        std::thread::spawn(move || {
            let result = flock(file.as_fd(), FlockOperation::LockExclusive);
            let _ = done.send(result);
        });
        match pin!(locked).await {
            Ok(Ok(())) => self.held = true,
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(_) => return Err(failed(io::ErrorKind::Interrupted.into())),
        }
        Ok(self)
    }
}
