//! A client of the program's socket.

use std::io::{Read, Write};

/// Sends an HTTP request for `path` and returns the complete response.
pub fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
