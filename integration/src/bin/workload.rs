//! The program inside the containers of the tests, and the client that tells it what to do.
//!
//! - `workload pause`: does nothing, for ever (the sandbox).
//! - `workload serve DIR`: takes commands on the socket `DIR/socket`, one a line, and answers each with one line.
//! - `workload keep BYTES`: takes so much memory at once, and keeps it for ever.
//! - `workload call DIR COMMAND...`: sends one command from outside and prints the answer; exit 0 if it starts with `ok`.
//!
//! Commands: `ping`, `alloc BYTES` (anonymous memory, touched), `touch` (all of it again), `free` (all of it),
//! `read PATH` (into page cache), `write PATH BYTES` (dirty page cache), `child BYTES` (a child that allocates; the
//! answer says how it ended), `grow BYTES MILLISECONDS` (the same as `alloc`, but from now on, so long for each MiB, until
//! `free`), `exit CODE`.
//!
//! It is linked statically and uses the standard library only: the image is this one file.

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

/// Whether what was told to grow goes on.
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

/// Memory that stays touched until it is freed.
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
    // Keeps the writes: nothing reads the block otherwise.
    std::hint::black_box(block);
}

fn serve(dir: &Path) -> io::Result<()> {
    let socket = dir.join("socket");
    if socket.exists() {
        fs::remove_file(&socket)?; // of the container's previous life
    }
    // It has its name once it listens: between both who connects is refused.
    let unnamed = dir.join("socket.new");
    if unnamed.exists() {
        fs::remove_file(&unnamed)?;
    }
    let listener = UnixListener::bind(&unnamed)?;
    fs::rename(&unnamed, &socket)?;
    // Opening a FIFO for writing waits for a reader, and the other way round: a client that came before the socket
    // existed waits there, without polling. See `call`.
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
                break; // the client is gone; the next one may come
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
            let (bytes, pause) = (number(bytes)?, Duration::from_millis(number(pause)? as u64));
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

fn call(dir: &Path, command: &str) -> io::Result<bool> {
    let socket = dir.join("socket");
    let stream = match UnixStream::connect(&socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            drop(File::open(dir.join("started"))?); // waits for the server
            UnixStream::connect(&socket)?
        }
        other => other?,
    };
    writeln!(&stream, "{command}")?;
    let mut answer = String::new();
    if BufReader::new(&stream).read_line(&mut answer)? == 0 {
        answer = "gone\n".into(); // ended while it worked: killed, or told to exit
    }
    print!("{answer}");
    Ok(answer.starts_with("ok"))
}
