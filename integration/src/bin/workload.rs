//! The program inside the test containers, and the client that sends commands to it.
//!
//! - `workload pause`: does nothing forever (the sandbox).
//! - `workload serve DIR`: reads commands from the socket `DIR/socket`, one per line, and answers
//!   each command with one line.
//! - `workload keep BYTES`: allocates this amount of memory at once and keeps it forever.
//! - `workload hold BYTES`: allocates this amount of memory and exits; the command `child` uses it.
//! - `workload call DIR COMMAND...`: sends one command from outside and prints the answer. The exit
//!   status is 0 if the answer starts with `ok`.
//!
//! The program understands these commands:
//!
//! - `ping`: only answers.
//! - `alloc BYTES`: allocates anonymous memory and touches it.
//! - `touch`: touches all memory of `alloc` again.
//! - `free`: frees all memory.
//! - `read PATH`: reads a file into page cache.
//! - `write PATH BYTES`: writes a file, which makes dirty page cache.
//! - `child BYTES`: runs a child process that allocates. The answer contains the child's exit
//!   status.
//! - `grow BYTES MILLISECONDS`: allocates in the background until `free`, with this pause after
//!   each MiB.
//! - `exit CODE`: exits with this status.
//!
//! The program is linked statically and uses only the standard library, because the container image
//! has no other file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;

/// Whether the threads of `grow` keep their memory and continue to allocate.
static GROWING: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["pause"] => loop {
            thread::park();
        },
        ["serve", dir] => serve(Path::new(dir)).map(|()| true),
        ["call", dir, command @ ..] => call(Path::new(dir), &command.join(" ")),
        ["keep", bytes] => bytes.parse().map_err(io::Error::other).map(|bytes| {
            let mut held = Held::default();
            held.alloc(bytes);
            loop {
                thread::park();
            }
        }),
        ["hold", bytes] => bytes.parse().map_err(io::Error::other).map(|bytes| {
            let mut held = Held::default();
            held.alloc(bytes);
            true
        }),
        _ => Err(io::Error::other(
            "usage: workload pause | keep BYTES | serve DIR | call DIR COMMAND",
        )),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("workload: {error}");
            ExitCode::from(2)
        }
    }
}

/// Touched memory that stays allocated until it is freed.
#[derive(Default)]
struct Held(Vec<Vec<u8>>);

impl Held {
    fn alloc(&mut self, bytes: usize) {
        self.0.push(vec![0; bytes]);
        if let Some(block) = self.0.last_mut() {
            touch(block);
        }
    }

    fn total(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

fn touch(block: &mut [u8]) {
    for byte in block.iter_mut().step_by(PAGE) {
        *byte = byte.wrapping_add(1);
    }
    // Without this call the compiler could remove the writes, because nothing reads the block.
    std::hint::black_box(block);
}

fn serve(dir: &Path) -> io::Result<()> {
    let socket = dir.join("socket");
    if socket.exists() {
        fs::remove_file(&socket)?; // from the previous run of the container
    }
    // The socket gets its name only after it listens. The kernel would refuse a client that
    // connects between bind and listen.
    let unnamed = dir.join("socket.new");
    if unnamed.exists() {
        fs::remove_file(&unnamed)?;
    }
    let listener = UnixListener::bind(&unnamed)?;
    fs::rename(&unnamed, &socket)?;
    // Opening a FIFO blocks until another process opens the other end. A client that finds no
    // socket opens the FIFO, so it waits for the server without polling. See `call`.
    let started = dir.join("started");
    if started.exists() {
        thread::spawn(move || while OpenOptions::new().write(true).open(&started).is_ok() {});
    }
    let mut held = Held::default();
    for stream in listener.incoming() {
        let stream = stream?;
        let mut answers = stream.try_clone()?;
        for line in BufReader::new(stream).lines() {
            let answer = line.and_then(|line| obey(&mut held, &line));
            let answer = answer.unwrap_or_else(|error| format!("error {error}"));
            if writeln!(answers, "{answer}").is_err() {
                break; // the client has disconnected: accept the next client
            }
        }
    }
    Ok(())
}

fn obey(held: &mut Held, line: &str) -> io::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| word.parse::<usize>().map_err(io::Error::other);
    match words.as_slice() {
        ["ping"] => Ok("ok".into()),
        ["alloc", bytes] => {
            held.alloc(number(bytes)?);
            Ok(format!("ok {}", held.total()))
        }
        ["touch"] => {
            held.0.iter_mut().for_each(|block| touch(block));
            Ok(format!("ok {}", held.total()))
        }
        ["grow", bytes, pause] => {
            grow(number(bytes)?, Duration::from_millis(number(pause)? as u64));
            Ok("ok".into())
        }
        ["free"] => {
            GROWING.store(false, Ordering::Relaxed);
            held.0.clear();
            Ok("ok 0".into())
        }
        ["read", path] => {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; CHUNK];
            let mut total = 0;
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(format!("ok {total}")),
                    read => total += read,
                }
            }
        }
        ["write", path, bytes] => {
            let mut file = File::create(path)?;
            let buffer = vec![7; CHUNK];
            let mut left = number(bytes)?;
            while left > 0 {
                let part = left.min(CHUNK);
                file.write_all(&buffer[..part])?;
                left -= part;
            }
            Ok(format!("ok {bytes}"))
        }
        ["child", bytes] => {
            let status = Command::new("/proc/self/exe").args(["hold", bytes]).status()?;
            Ok(format!("ok {status}"))
        }
        ["exit", code] => std::process::exit(code.parse().map_err(io::Error::other)?),
        _ => Err(io::Error::other(format!("no such command: {line}"))),
    }
}

/// Allocates in the background until `free`, with a pause after each MiB.
fn grow(bytes: usize, pause: Duration) {
    GROWING.store(true, Ordering::Relaxed);
    thread::spawn(move || {
        let mut held = Held::default();
        while GROWING.load(Ordering::Relaxed) {
            if held.total() < bytes {
                held.alloc(CHUNK);
            }
            thread::sleep(pause);
        }
    });
}

fn call(dir: &Path, command: &str) -> io::Result<bool> {
    let socket = dir.join("socket");
    let stream = match UnixStream::connect(&socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            drop(File::open(dir.join("started"))?); // blocks until the server listens
            UnixStream::connect(&socket)?
        }
        other => other?,
    };
    writeln!(&stream, "{command}")?;
    let mut answer = String::new();
    if BufReader::new(&stream).read_line(&mut answer)? == 0 {
        answer = "gone\n".into(); // the server was killed or exited during the command
    }
    print!("{answer}");
    Ok(answer.starts_with("ok"))
}
