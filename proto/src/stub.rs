//! The stub, which connects, registers and serves a plugin.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::{StreamExt as _, stream};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};

use crate::api::RegisterPluginRequest;
use crate::error::Error;
use crate::generated::nri_ttrpc::{RuntimeClient, create_plugin};
use crate::handle::Runtime;
use crate::identity::Identity;
use crate::instance_lock::InstanceLock;
use crate::launch::Launched;
use crate::mux::Mux;
use crate::plugin::{Plugin, Refusal};
use crate::service::{Progress, Service};
use crate::version::NriVersion;

/// The default socket at which runtimes listen for plugins.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// NRI's default for the time that a runtime waits for a registration. The stub waits for the same
/// time for the reply to its registration and for Configure.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for the first synchronisation. Before NRI 0.12, a runtime that cannot list its pods
/// and containers leaves the connection open but never sends an event over it.
const SYNCHRONIZE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that a launched plugin waits for the lock of another instance before it declines the
/// connection. The runtime is blocked until the plugin replies.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Time that a connection must last before the reconnect delay returns to its minimum. Otherwise a
/// plugin that the runtime drops for slow replies would block the runtime again at once.
const LASTING: Duration = Duration::from_secs(60);

impl Launched {
    /// Registers a plugin that cannot run, and then closes the connection. Call this function
    /// before the plugin exits. If a launched plugin ends without a registration, a runtime with
    /// NRI before 0.7 does not start.
    pub async fn decline(self) {
        let identity = self.identity.clone();
        if let Some(Ok(connection)) = self.connection.map(connection) {
            decline(identity, Arc::default(), Some(connection)).await;
        }
    }
}

/// Converts the file descriptor from a runtime to a connection.
fn connection(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let connection = std::os::unix::net::UnixStream::from(descriptor);
    connection.set_nonblocking(true)?;
    UnixStream::from_std(connection)
}

/// Registers, then refuses the configuration and closes the connection. Calls no method of the
/// plugin. Stores the drop-in file that the runtime sends. A runtime with NRI before 0.7 does not
/// start if a plugin that it launched does not register.
async fn decline(
    identity: Identity,
    drop_in: Arc<OnceLock<String>>,
    connection: Option<UnixStream>,
) {
    struct Absent;
    impl Plugin for Absent {
        fn events(&self) -> crate::EventMask {
            crate::EventMask::empty()
        }
        async fn configure(&self, _: crate::Configuration) -> Result<(), Refusal> {
            Err(Refusal::new("declined"))
        }
    }
    let Some(connection) = connection else { return };
    let absent = Stub { drop_in, ..Stub::external(identity, Absent) };
    absent.session(connection, true, std::future::pending()).await;
}

/// A runner that keeps a plugin connected to its runtime.
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

/// How a connection has ended.
#[derive(Debug)]
enum End {
    Refused(Refusal),
    Closed {
        reason: String,
        was_synchronized: bool,
    },
    /// The stub could not connect.
    Unreachable(io::Error),
    /// A new connection replaces this connection, because the runtime synchronises the plugin only
    /// over the new connection.
    Replaced(UnixStream),
}

impl<P: Plugin> Stub<P> {
    /// Returns a stub for a plugin that connects to the runtime's socket.
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

    /// Returns a stub for a plugin that the runtime launched.
    pub fn launched(launched: Launched, plugin: P) -> Self {
        let identity = launched.identity.clone();
        Self { launched: Some(launched), ..Self::external(identity, plugin) }
    }

    /// Sets the runtime's socket. The default is [`DEFAULT_SOCKET`]. A launched plugin also
    /// reconnects over this socket.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = path.into();
        self
    }

    /// Returns the plugin.
    pub fn plugin(&self) -> &Arc<P> {
        &self.plugin
    }

    /// Returns the handle for requests to the runtime.
    pub fn runtime(&self) -> Runtime {
        self.runtime.clone()
    }

    /// Runs the plugin. Drop the future to stop the plugin.
    ///
    /// After a lost connection, the stub waits before it reconnects. The delay starts at 100 ms and
    /// doubles with each attempt up to 15 s. The stub adds a random delay of up to the same length,
    /// so that the plugins of a node do not reconnect all at once. If no process listens at the
    /// socket, the delays grow only to between 1 s and 2 s.
    ///
    /// If two instances of a plugin ran on a node, every creation of a container would fail,
    /// because both instances set the same values. Therefore an instance locks the file `NAME.lock`
    /// beside the runtime's socket. While another instance holds the lock, this instance waits
    /// without a time limit. The index is not part of the file name, so instances with different
    /// indexes also exclude each other.
    ///
    /// Returns `Ok` only for a launched plugin, when the runtime that launched it has ended. The
    /// next runtime launches its own instance.
    ///
    /// # Errors
    ///
    /// Fails if the plugin refuses its configuration. Also fails if the lock file or the connection
    /// from the runtime cannot be used.
    pub async fn run(mut self) -> Result<(), Error> {
        let Some(launched) = self.launched.take() else {
            let _lock = InstanceLock::open(&self.socket, &self.identity)?.wait().await?;
            return self.serve(None).await;
        };
        let runtime = launched.runtime.and_then(watch);
        let mut connection =
            launched.connection.map(connection).transpose().map_err(Error::Connection)?;
        let serve = async {
            let lock = match InstanceLock::open(&self.socket, &self.identity) {
                Ok(lock) => lock,
                Err(error) => {
                    decline(self.identity.clone(), self.drop_in.clone(), connection.take()).await;
                    return Err(error);
                }
            };
            let mut lock = pin!(lock.wait());
            // Wait for a moment, because the instance that a previous runtime launched may be about
            // to end.
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
        // Delays while no process listens at the socket. The delays are shorter, because these
        // attempts cost the runtime nothing.
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
                    // Log one warning per lost connection, not one per attempt.
                    if !told {
                        warn!(
                            socket = %self.socket.display(),
                            %error,
                            "cannot connect to the runtime, trying again"
                        );
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

    /// Serves one connection until it ends. When the function returns, all handlers of the
    /// connection have ended.
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
        // Keep the listener pending: the server panics at shutdown if its listener has ended.
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
                () = self.runtime.renewal.notified() => {
                    closed("the plugin requested a new synchronization".to_owned())
                }
                end = self.converse(&mux, &client, watched, launched, replacement) => end,
            },
        };

        self.runtime.set(None);
        mux.close();
        // `shutdown` waits until running handlers are dropped.
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

    /// Registers the plugin and supervises the connection. Returns only when the connection must
    /// end.
    async fn converse(
        &self,
        mux: &Mux,
        client: &RuntimeClient,
        mut progress: watch::Receiver<Progress>,
        launched: bool,
        replacement: impl Future<Output = UnixStream>,
    ) -> End {
        let register = RegisterPluginRequest {
            plugin_name: self.identity.name().to_owned(),
            plugin_idx: self.identity.index().to_owned(),
            NRI_version: NriVersion::NEWEST.to_string(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(REGISTRATION_TIMEOUT);
        if let Err(error) = client.register_plugin(context, &register).await {
            return closed(format!("cannot register as {}: {error}", self.identity));
        }
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
                // Wait until the reply to Configure is sent, which is the plugin's first message.
                // Without this reply, a runtime with NRI 0.6.1 does not start.
                mux.plugin_messages_sent(1).await;
                return End::Refused(refusal);
            }
            Progress::Configured(version) => version,
            // Synchronize had already ended when this task read the progress.
            _ => None,
        };
        self.runtime.set(Some(client.clone()));

        if launched && version.is_some_and(|version| version < NriVersion::SYNCHRONIZES_LAUNCHED) {
            return End::Replaced(replacement.await);
        }
        self.until_forgotten(progress).await
    }

    /// Waits for the synchronization, and then until the runtime has forgotten the plugin. Returns
    /// only when the connection must end.
    async fn until_forgotten(&self, mut progress: watch::Receiver<Progress>) -> End {
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

    /// Connects to the socket of a runtime that does not synchronise plugins that it launched. A
    /// runtime with NRI before 0.7 synchronises only external plugins. Such a runtime listens at
    /// the socket only after all launched plugins are started.
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
}

/// Returns an endless sequence of growing, randomly varied delays.
fn delays(longest: Duration) -> impl Iterator<Item = Duration> {
    let delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(longest);
    delays.with_jitter().without_max_times().build()
}

/// Registers a pidfd with tokio. Returns `None` if the pidfd cannot be polled.
fn watch(process: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, and no code removes or replaces it.
    #[allow(unsafe_code)]
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.ok()
}

/// Waits until a process has ended. Never returns for `None`.
async fn ended(process: Option<AsyncFd<OwnedFd>>) {
    if let Some(process) = process
        && process.readable().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Returns the end of a connection whose service has dropped the sender of its progress. The server
/// drops the service only when the connection ends.
fn gone(_: watch::error::RecvError) -> End {
    closed("the service ended".to_owned())
}

fn closed(reason: String) -> End {
    End::Closed { reason, was_synchronized: false }
}
