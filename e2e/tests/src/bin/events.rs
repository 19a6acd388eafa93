//! `gregor-events generate BYTES` writes JSON events to standard output, `gregor-events check BYTES` reads them back from
//! standard input in any order and compares each byte. Runs in the clients' pods, in a pipe with an unmodified client.

use std::{
    env,
    io::{self, BufWriter},
    process::ExitCode,
};

use gregor_e2e::events;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let bytes = arguments.get(1).and_then(|bytes| bytes.parse().ok());
    let mut progress = |done: u64| eprintln!("{} MB", done / 1_000_000);
    let result = match (arguments.first().map(String::as_str), bytes) {
        (Some("generate"), Some(bytes)) => {
            let mut output = BufWriter::with_capacity(1 << 16, io::stdout().lock());
            events::generate(bytes, &mut output, &mut progress).map_err(|error| error.to_string())
        }
        (Some("check"), Some(bytes)) => events::check(bytes, &mut io::stdin().lock(), &mut progress),
        _ => Err("usage: gregor-events generate|check BYTES".to_owned()),
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
