//! `gregor-events generate BYTES` writes JSON events to standard output, `gregor-events check BYTES` reads them back from
//! standard input in any order and compares each byte; `gregor-events check-in-order BYTES` takes lines that begin with their
//! partition's number, and minds the order in each. Runs in the clients' pods, in a pipe with an unmodified client.
//! `gregor-events generate BYTES FILE` takes its time until FILE is there, for a load that lasts as long as something else.

use std::{
    env,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use gregor_e2e::events;

/// What is written at once while there is time, and the pause after it: a quarter of a megabyte in a second.
const SLOW_BYTES: usize = 8 << 10;
const PAUSE: Duration = Duration::from_millis(32);

/// Pauses after each write until a file is there.
struct Slow<W> {
    output: W,
    until: Option<PathBuf>,
}

impl<W: Write> Write for Slow<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.until.take_if(|file| file.exists());
        if self.until.is_some() {
            self.output.flush()?;
            thread::sleep(PAUSE);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let bytes = arguments.get(1).and_then(|bytes| bytes.parse().ok());
    let mut progress = |done: u64| eprintln!("{} MB", done / 1_000_000);
    let result = match (arguments.first().map(String::as_str), bytes) {
        (Some("generate"), Some(bytes)) => {
            let output = io::stdout().lock();
            let file = arguments.get(2).map(PathBuf::from);
            let capacity = if file.is_some() { SLOW_BYTES } else { 1 << 16 };
            let mut output = BufWriter::with_capacity(capacity, Slow { output, until: file });
            events::generate(bytes, &mut output, &mut progress).map_err(|error| error.to_string())
        }
        (Some("check"), Some(bytes)) => events::check(bytes, &mut io::stdin().lock(), &mut progress),
        (Some("check-in-order"), Some(bytes)) => events::check_in_order(bytes, &mut io::stdin().lock(), &mut progress),
        _ => Err("usage: gregor-events generate BYTES [FILE] | check BYTES | check-in-order BYTES".to_owned()),
    };
    match result {
        Ok(count) => {
            eprintln!("{count} events");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gregor-events: {error}");
            ExitCode::FAILURE
        }
    }
}
