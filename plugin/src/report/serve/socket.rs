//! Path of the plugin's socket, and the listener on the socket.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::state::originals;

/// Name of the socket in the plugin's directory.
const SOCKET: &str = "plimsoll.sock";

/// Returns the path of the plugin's socket on the node whose file system is at `host`.
pub fn socket(host: &Path) -> PathBuf {
    host.join(originals::DIRECTORY).join(SOCKET)
}

/// Listens on a socket that only root can connect to.
pub(super) async fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // Only root can enter the directory, so no other user can connect before the socket's own
        // mode is set.
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    match UnixStream::connect(path).await {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another instance of the plugin answers on the socket; stop one of the instances",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}
