//! State of a unix socket, determined by an attempt to connect.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Result of a connection attempt to a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    /// A process accepts connections.
    Listens,
    /// The socket does not exist.
    Absent,
    /// The kernel denied access.
    Denied,
    /// The socket exists but is not usable, for this reason.
    Dead(String),
}

impl Socket {
    /// Connects to the socket and closes the connection.
    pub(crate) fn connect(path: &Path) -> Self {
        // A server that accepts no connections must not block this function.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let connected = SocketAddrUnix::new(path).and_then(|address| {
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::connect(&socket, &address)
        });
        match connected {
            // EAGAIN means that the listen queue is full, so a server exists.
            Ok(()) | Err(Errno::AGAIN) => Self::Listens,
            Err(Errno::NOENT | Errno::NOTDIR) => Self::Absent,
            Err(Errno::ACCESS | Errno::PERM) => Self::Denied,
            Err(Errno::CONNREFUSED) => Self::Dead("no process listens".to_owned()),
            Err(error) => Self::Dead(io::Error::from(error).to_string()),
        }
    }
}
