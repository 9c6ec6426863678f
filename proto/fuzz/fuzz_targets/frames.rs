//! Fuzz target for the bytes from the runtime's socket. The multiplexer reads the input to its end,
//! or reports why the other side's data ended the connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nri::mux::{Closed, Mux};
use tokio::io::{AsyncWriteExt, copy, duplex, sink};

fuzz_target!(|bytes: &[u8]| {
    let bytes = bytes.to_vec();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a tokio runtime");
    let closed = runtime.block_on(async move {
        let (ours, mut theirs) = duplex(4096);
        let (mux, mut plugin, mut runtime) = Mux::new(ours);
        tokio::spawn(async move { theirs.write_all(&bytes).await });
        tokio::spawn(async move { copy(&mut plugin, &mut sink()).await });
        tokio::spawn(async move { copy(&mut runtime, &mut sink()).await });
        mux.closed().await
    });
    assert_ne!(closed, Closed::Local);
});
