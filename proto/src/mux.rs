//! A multiplexer for two logical connections over one socket.
//!
//! NRI runs two ttrpc connections over one Unix socket, the *trunk*. The plugin is the server on
//! the first connection, and the runtime is the server on the second. The trunk carries frames:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | [`ConnId`], big-endian |
//! | 4 | length of the payload, big-endian |
//! | length | payload: a piece of the logical connection's byte stream |
//!
//! # Received frames
//!
//! A frame may have up to [`MAX_FRAME`] bytes. A frame may contain a part of a ttrpc message or
//! several messages. A longer frame closes the trunk with the reason [`Closed::Oversize`]. A frame
//! for an unknown connection closes the trunk with the reason [`Closed::UnknownConnection`].
//!
//! # Sent frames
//!
//! The other side, which is written in Go, reads a frame with a single read into its buffer. The Go
//! side fails if a frame is larger than this buffer. The Go side also stores at most 256 unread
//! frames per connection.
//!
//! The Go side's read buffer has 4096 bytes. Therefore this side sends a ttrpc message of at most
//! 4096 bytes as one frame. For a longer message, this side sends one frame for the 10-byte header
//! and one frame for the payload.
//!
//! Source: containerd/nri `pkg/net/multiplex/mux.go`, containerd/ttrpc `channel.go`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, PollSender};

/// Length of a ttrpc message header: 4 bytes length, 4 bytes stream, 1 byte type, 1 byte flags.
const TTRPC_HEADER: usize = 10;

/// Longest ttrpc message payload, in bytes.
const TTRPC_MAX_PAYLOAD: usize = 4 << 20;

/// Length of a frame header.
const FRAME_HEADER: usize = 8;

/// Longest accepted payload of a frame, in bytes. NRI 0.6.1 may send frames with a payload of this
/// length. No other version sends longer frames.
pub const MAX_FRAME: usize = (16 << 20) + TTRPC_HEADER;

/// Size of the Go side's read buffer, in bytes. The Go side can always read a frame up to this
/// size.
const GO_READ_BUFFER: usize = 4096;

/// Maximum number of received frames that wait for the reader of a logical connection. While the
/// queue is full, the multiplexer does not read the trunk. The maximum therefore also limits the
/// memory that the queue uses.
const READ_QUEUE: usize = 4;

/// Maximum number of ttrpc messages that wait to be written to the trunk.
const WRITE_QUEUE: usize = 16;

/// A logical connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnId {
    /// The plugin is the server, the runtime is the client.
    Plugin = 1,
    /// The runtime is the server, the plugin is the client.
    Runtime = 2,
}

/// The reason why a trunk is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// This side closed the trunk.
    #[error("closed by this side")]
    Local,
    /// The other side closed the trunk between two frames.
    #[error("closed by the other side")]
    Peer,
    /// The other side closed the trunk within a frame.
    #[error("closed by the other side in the middle of a frame")]
    Truncated,
    /// The other side sent a frame that is longer than any NRI version sends.
    #[error("received a frame of {length} bytes, expected at most {MAX_FRAME}")]
    Oversize {
        /// The length in the frame's header, in bytes.
        length: u32,
    },
    /// The other side sent a frame for a logical connection that does not exist.
    #[error("received a frame for connection {id}, expected 1 (plugin) or 2 (runtime)")]
    UnknownConnection {
        /// The connection in the frame's header.
        id: u32,
    },
    /// Reading or writing failed.
    #[error("cannot {operation} the NRI socket: {error}")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The operating system's error.
        error: String,
    },
}

/// A trunk with its two logical connections. Dropping the trunk closes both connections.
#[derive(Debug)]
pub struct Mux {
    state: Arc<State>,
    plugin_sent: watch::Receiver<u64>,
}

#[derive(Debug, Default)]
struct State {
    closed: CancellationToken,
    reason: OnceLock<Closed>,
}

impl State {
    fn close(&self, reason: Closed) {
        // Keep the first reason, because the first failure causes all later ones.
        let _ = self.reason.set(reason);
        self.closed.cancel();
    }

    fn reason(&self) -> Closed {
        self.reason.get().cloned().unwrap_or(Closed::Local)
    }
}

impl Mux {
    /// Splits `trunk` into its logical connections: first [`ConnId::Plugin`], then
    /// [`ConnId::Runtime`].
    ///
    /// # Panics
    ///
    /// Panics if called outside a tokio runtime, because the function spawns the tasks that
    /// transfer the frames.
    pub fn new<T>(trunk: T) -> (Self, Conn, Conn)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let state = Arc::new(State::default());
        let (reader, writer) = tokio::io::split(trunk);
        let (to_trunk, from_conns) = mpsc::channel(WRITE_QUEUE);
        let (to_plugin, from_trunk_to_plugin) = mpsc::channel(READ_QUEUE);
        let (to_runtime, from_trunk_to_runtime) = mpsc::channel(READ_QUEUE);
        let (sent, plugin_sent) = watch::channel(0);

        let reading = state.clone();
        tokio::spawn(async move {
            let reason = tokio::select! {
                reason = read_trunk(reader, to_plugin, to_runtime) => reason,
                () = reading.closed.cancelled() => Closed::Local,
            };
            reading.close(reason);
        });
        let writing = state.clone();
        tokio::spawn(async move {
            let mut writer = writer;
            let reason = tokio::select! {
                reason = write_trunk(&mut writer, from_conns, sent) => reason,
                () = writing.closed.cancelled() => Closed::Local,
            };
            writing.close(reason);
            // The other side may have closed the socket already, so ignore an error.
            let _ = writer.shutdown().await;
        });

        let conn = |id, incoming| Conn {
            incoming,
            unread: Bytes::new(),
            outgoing: Assembler::new(id),
            to_trunk: PollSender::new(to_trunk.clone()),
        };
        let plugin = conn(ConnId::Plugin, from_trunk_to_plugin);
        let runtime = conn(ConnId::Runtime, from_trunk_to_runtime);
        (Self { state, plugin_sent }, plugin, runtime)
    }

    /// Closes the trunk. Both logical connections end.
    pub fn close(&self) {
        self.state.close(Closed::Local);
    }

    /// Waits until the trunk is closed and returns the reason.
    pub async fn closed(&self) -> Closed {
        self.state.closed.cancelled().await;
        self.state.reason()
    }

    /// Waits until `count` messages of [`ConnId::Plugin`] are written to the trunk, or the trunk is
    /// closed.
    pub(crate) async fn plugin_messages_sent(&self, count: u64) {
        let mut sent = self.plugin_sent.clone();
        // An error means that the writer has ended, so the trunk is closed.
        let _ = sent.wait_for(|sent| *sent >= count).await;
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.close();
    }
}

async fn read_trunk(
    trunk: impl AsyncRead + Unpin,
    to_plugin: mpsc::Sender<Bytes>,
    to_runtime: mpsc::Sender<Bytes>,
) -> Closed {
    let mut trunk = BufReader::new(trunk);
    loop {
        let (id, payload) = match read_frame(&mut trunk).await {
            Ok(frame) => frame,
            Err(closed) => return closed,
        };
        let queue = match id {
            ConnId::Plugin => &to_plugin,
            ConnId::Runtime => &to_runtime,
        };
        // An error means that a logical connection was dropped. The other connection continues.
        let _ = queue.send(payload).await;
    }
}

/// Reads the next frame that is not empty. Allocates memory once, for exactly the payload.
async fn read_frame(trunk: &mut (impl AsyncRead + Unpin)) -> Result<(ConnId, Bytes), Closed> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Closed::Truncated,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Closed::Peer,
        _ => Closed::Io { operation: "read", error: error.to_string() },
    };
    loop {
        let mut header = [0; FRAME_HEADER];
        if trunk.read(&mut header[..1]).await.map_err(failed)? == 0 {
            return Err(Closed::Peer);
        }
        trunk.read_exact(&mut header[1..]).await.map_err(failed)?;
        let mut fields = &header[..];
        let id = match fields.get_u32() {
            1 => ConnId::Plugin,
            2 => ConnId::Runtime,
            id => return Err(Closed::UnknownConnection { id }),
        };
        let length = fields.get_u32();
        if length as usize > MAX_FRAME {
            return Err(Closed::Oversize { length });
        }
        if length == 0 {
            continue;
        }
        let mut payload = Vec::with_capacity(length as usize);
        while payload.len() < length as usize {
            let missing = length as usize - payload.len();
            if trunk.read_buf(&mut (&mut payload).limit(missing)).await.map_err(failed)? == 0 {
                return Err(Closed::Truncated);
            }
        }
        return Ok((id, payload.into()));
    }
}

async fn write_trunk(
    trunk: &mut (impl AsyncWrite + Unpin),
    mut from_conns: mpsc::Receiver<(ConnId, Vec<u8>)>,
    plugin_sent: watch::Sender<u64>,
) -> Closed {
    while let Some((id, frames)) = from_conns.recv().await {
        if let Err(error) = trunk.write_all(&frames).await {
            return match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Closed::Peer,
                _ => Closed::Io { operation: "write", error: error.to_string() },
            };
        }
        if id == ConnId::Plugin {
            plugin_sent.send_modify(|sent| *sent += 1);
        }
    }
    Closed::Local
}

/// An assembler that divides a byte stream into ttrpc messages and adds the frame headers to each
/// message.
struct Assembler {
    id: ConnId,
    header: [u8; TTRPC_HEADER],
    header_len: usize,
    /// The frames of the current message, once its header is complete.
    frames: Vec<u8>,
    missing: usize,
}

impl fmt::Debug for Assembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembler")
            .field("id", &self.id)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Assembler {
    fn new(id: ConnId) -> Self {
        Self { id, header: [0; TTRPC_HEADER], header_len: 0, frames: Vec::new(), missing: 0 }
    }

    /// Takes bytes from the stream up to the end of the message. Returns the number of these bytes.
    /// If the message is complete, also returns its frames.
    fn push(&mut self, bytes: &[u8]) -> io::Result<(usize, Option<Vec<u8>>)> {
        let mut taken = 0;
        if self.header_len < TTRPC_HEADER {
            taken = bytes.len().min(TTRPC_HEADER - self.header_len);
            self.header[self.header_len..][..taken].copy_from_slice(&bytes[..taken]);
            self.header_len += taken;
            if self.header_len < TTRPC_HEADER {
                return Ok((taken, None));
            }
            self.begin()?;
        }
        let payload = (bytes.len() - taken).min(self.missing);
        self.frames.extend_from_slice(&bytes[taken..][..payload]);
        self.missing -= payload;
        taken += payload;
        if self.missing > 0 {
            return Ok((taken, None));
        }
        self.header_len = 0;
        Ok((taken, Some(std::mem::take(&mut self.frames))))
    }

    fn begin(&mut self) -> io::Result<()> {
        let payload = (&self.header[..4]).get_u32() as usize;
        if payload > TTRPC_MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "cannot send a ttrpc message of {payload} bytes, at most {TTRPC_MAX_PAYLOAD} \
                     are possible"
                ),
            ));
        }
        let one_frame = TTRPC_HEADER + payload <= GO_READ_BUFFER;
        self.missing = payload;
        self.frames = Vec::with_capacity(2 * FRAME_HEADER + TTRPC_HEADER + payload);
        self.frames.put_u32(self.id as u32);
        // The casts are lossless, because both lengths are at most 4 MiB + 10 bytes.
        self.frames.put_u32((if one_frame { TTRPC_HEADER + payload } else { TTRPC_HEADER }) as u32);
        self.frames.extend_from_slice(&self.header);
        if !one_frame {
            self.frames.put_u32(self.id as u32);
            self.frames.put_u32(payload as u32);
        }
        Ok(())
    }
}

/// A logical connection: a byte stream of ttrpc messages.
///
/// A read returns 0 bytes when the trunk is closed. Written bytes are sent once they complete a
/// ttrpc message. A write waits while the write queue of the trunk is full.
#[derive(Debug)]
pub struct Conn {
    incoming: mpsc::Receiver<Bytes>,
    unread: Bytes,
    outgoing: Assembler,
    to_trunk: PollSender<(ConnId, Vec<u8>)>,
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.incoming.poll_recv(cx)) {
                Some(payload) => self.unread = payload,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.to_trunk.poll_reserve(cx)).map_err(gone)?;
        let (taken, complete) = self.outgoing.push(bytes)?;
        if let Some(frames) = complete {
            let id = self.outgoing.id;
            self.to_trunk.send_item((id, frames)).map_err(gone)?;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to_trunk.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    fn message(payload: usize) -> Vec<u8> {
        let mut message = Vec::new();
        message.put_u32(payload as u32);
        message.put_u32(1);
        message.put_u8(2);
        message.put_u8(0);
        message.extend((0..payload).map(|i| i as u8));
        message
    }

    /// Returns the payload lengths of the frames in `trunk`.
    fn frame_lengths(mut trunk: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !trunk.is_empty() {
            assert_eq!(trunk.get_u32(), 1);
            let length = trunk.get_u32() as usize;
            trunk.advance(length);
            lengths.push(length);
        }
        lengths
    }

    fn assemble(pieces: &[&[u8]]) -> Vec<u8> {
        let mut assembler = Assembler::new(ConnId::Plugin);
        let mut trunk = Vec::new();
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let (taken, frames) = assembler.push(piece).expect("a message that can be sent");
                piece = &piece[taken..];
                trunk.extend(frames.unwrap_or_default());
            }
        }
        trunk
    }

    #[test]
    fn messages_within_4096_bytes_form_one_frame() {
        assert_eq!(frame_lengths(&assemble(&[&message(0)])), [10]);
        assert_eq!(frame_lengths(&assemble(&[&message(4086)])), [4096]);
    }

    #[test]
    fn larger_messages_become_header_and_payload_frames() {
        assert_eq!(frame_lengths(&assemble(&[&message(4087)])), [10, 4087]);
        assert_eq!(frame_lengths(&assemble(&[&message(4 << 20)])), [10, 4 << 20]);
    }

    #[test]
    fn messages_above_the_ttrpc_limit_are_refused() {
        let mut assembler = Assembler::new(ConnId::Plugin);
        let error = assembler.push(&message((4 << 20) + 1)).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn input_fragmentation_does_not_change_frames(
            lengths in prop::collection::vec(0_usize..9000, 1..4),
            cuts in prop::collection::vec(1_usize..5000, 1..40),
        ) {
            let messages: Vec<Vec<u8>> = lengths.iter().map(|length| message(*length)).collect();
            let whole: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let stream = messages.concat();
            let mut rest = stream.as_slice();
            let mut pieces = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            prop_assert_eq!(assemble(&pieces), assemble(&whole));
        }

        #[test]
        fn random_input_closes_the_trunk_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a tokio runtime");
            let closed = runtime.block_on(async move {
                let (ours, mut theirs) = duplex(64);
                let (mux, mut plugin, mut runtime) = Mux::new(ours);
                tokio::spawn(async move { theirs.write_all(&bytes).await });
                tokio::spawn(async move { tokio::io::copy(&mut plugin, &mut tokio::io::sink()).await });
                tokio::spawn(async move { tokio::io::copy(&mut runtime, &mut tokio::io::sink()).await });
                mux.closed().await
            });
            prop_assert_ne!(closed, Closed::Local);
        }
    }

    #[tokio::test]
    async fn written_messages_arrive_at_the_other_end() {
        let (left, right) = duplex(1000);
        let (_left_mux, mut plugin, _runtime) = Mux::new(left);
        let (_right_mux, mut peer, _peer_runtime) = Mux::new(right);
        let sent = [message(3), message(100_000), message(0)].concat();
        let expected = sent.clone();
        tokio::spawn(async move {
            plugin.write_all(&sent).await.expect("an open trunk");
            std::future::pending::<()>().await;
        });
        let mut received = vec![0; expected.len()];
        peer.read_exact(&mut received).await.expect("an open trunk");
        assert!(received == expected);
    }

    #[tokio::test]
    async fn frames_split_into_single_bytes_are_accepted() {
        let (ours, mut theirs) = duplex(1);
        let (_mux, _plugin, mut runtime) = Mux::new(ours);
        tokio::spawn(async move {
            theirs.write_all(&[0, 0, 0, 2, 0, 0, 0, 0]).await.expect("an open trunk");
            theirs.write_all(&[0, 0, 0, 2, 0, 0, 0, 3, 7, 8, 9]).await.expect("an open trunk");
            theirs
        });
        let mut received = [0; 3];
        runtime.read_exact(&mut received).await.expect("an open trunk");
        assert_eq!(received, [7, 8, 9]);
    }

    async fn closed_after(bytes: &[u8]) -> Closed {
        let (ours, mut theirs) = duplex(64);
        let (mux, _plugin, _runtime) = Mux::new(ours);
        theirs.write_all(bytes).await.expect("an open trunk");
        drop(theirs);
        mux.closed().await
    }

    #[tokio::test]
    async fn oversize_frames_are_refused_at_the_header() {
        let closed = closed_after(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).await;
        assert_eq!(closed, Closed::Oversize { length: u32::MAX });
        assert_eq!(
            closed.to_string(),
            "received a frame of 4294967295 bytes, expected at most 16777226"
        );
    }

    #[tokio::test]
    async fn frames_for_unknown_connections_close_the_trunk() {
        let closed = closed_after(b"GET / HTTP/1.1").await;
        assert_eq!(closed, Closed::UnknownConnection { id: 0x4745_5420 });
    }

    #[tokio::test]
    async fn only_closes_within_a_frame_report_truncation() {
        assert_eq!(closed_after(&[0, 0, 0, 1, 0, 0]).await, Closed::Truncated);
        assert_eq!(closed_after(&[0, 0, 0, 1, 0, 0, 0, 4, 1]).await, Closed::Truncated);
        assert_eq!(closed_after(&[0, 0, 0, 1, 0, 0, 0, 1, 1]).await, Closed::Peer);
        assert_eq!(closed_after(&[]).await, Closed::Peer);
    }

    #[tokio::test]
    async fn closing_ends_both_connections_at_both_ends() {
        let (left, right) = duplex(64);
        let (mux, mut plugin, mut runtime) = Mux::new(left);
        let (peer_mux, _peer_plugin, mut peer_runtime) = Mux::new(right);
        mux.close();
        let mut rest = Vec::new();
        assert_eq!(plugin.read_to_end(&mut rest).await.expect("an end"), 0);
        assert_eq!(runtime.read_to_end(&mut rest).await.expect("an end"), 0);
        assert_eq!(peer_runtime.read_to_end(&mut rest).await.expect("an end"), 0);
        assert_eq!(mux.closed().await, Closed::Local);
        assert_eq!(peer_mux.closed().await, Closed::Peer);
        assert!(plugin.write_all(&message(5)).await.is_err());
    }

    #[tokio::test]
    async fn an_unread_connection_pauses_the_trunk() {
        let (ours, mut theirs) = duplex(64);
        let (mux, mut plugin, _runtime) = Mux::new(ours);
        let mut frame = vec![0, 0, 0, 1, 0, 1, 0, 0];
        frame.resize(8 + (1 << 16), 7);
        let writing = tokio::spawn(async move {
            for _ in 0..100 {
                theirs.write_all(&frame).await?;
            }
            io::Result::Ok(theirs)
        });
        tokio::select! {
            biased;
            () = async { for _ in 0..10_000 { tokio::task::yield_now().await } } => {}
            _ = mux.closed() => panic!("the trunk closed"),
        }
        assert!(!writing.is_finished(), "6.5 MB were taken in without a reader");
        let mut received = vec![0; 100 << 16];
        plugin.read_exact(&mut received).await.expect("an open trunk");
        writing.await.expect("the writer").expect("an open trunk");
    }
}
