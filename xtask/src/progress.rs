//! What a person sees while a command works: a line that moves on a terminal, plain lines elsewhere.
//!
//! Used by every command that takes longer than a breath. It never prints more than a line per step and minute to a log.

use std::{
    cell::Cell,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

const HEARTBEAT: Duration = Duration::from_mins(1);

/// The steps of one command, with the time since it began.
pub struct Progress {
    began: Instant,
    spinner: Option<ProgressBar>,
    last_line: Cell<Instant>,
}

impl Progress {
    /// Progress that starts now.
    pub fn new() -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is a constant");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { began: Instant::now(), spinner, last_line: Cell::new(Instant::now()) }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        let line = format!("[{:>5} s] {text}", self.began.elapsed().as_secs());
        match &self.spinner {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
        self.last_line.set(Instant::now());
    }

    /// What goes on right now: shown at once on a terminal, once a minute elsewhere.
    pub fn now(&self, text: &str) {
        match &self.spinner {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.last_line.get().elapsed() >= HEARTBEAT => self.line(&format!("... {text}")),
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.spinner {
            bar.finish_and_clear();
        }
    }
}
