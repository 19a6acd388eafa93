//! A Java program of ours with Apache's clients in it that takes commands: one process for a whole test, so that its producers and
//! groups live through every change of brokers.
//!
//! Commands go to its standard input, one a line; each answer is lines that begin with "| " and one that is "done" or "failed".

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gregor_apache::{Jars, compile, java_program};

/// The program; dropped, it is killed.
pub struct Driver {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
    limit: Duration,
}

impl Driver {
    /// Compiles and starts it: `source` lies in this crate's folder and holds a class of its file's name, and no command takes longer
    /// than `limit`. What it says beside its answers goes to `driver.log` in the folder.
    pub fn start(jars: &Jars, folder: &Path, source: &str, arguments: &[&str], limit: Duration) -> Result<Self> {
        let classes = folder.join("classes");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        compile(jars, &source, &classes)?;
        let class = source.file_stem().and_then(|name| name.to_str()).context("a source file with a name")?;
        let mut child = java_program(jars, &classes, class, arguments)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("driver.log"))?)
            .spawn()
            .context("running `java`")?;
        let commands = child.stdin.take().context("piped")?;
        let stdout = child.stdout.take().context("piped")?;
        let (send, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, commands, answers, limit })
    }

    /// Has it do something; returns what it said.
    pub fn run(&mut self, command: &str) -> Result<Vec<String>> {
        writeln!(self.commands, "{command}")?;
        let mut said = Vec::new();
        loop {
            let line = self.answers.recv_timeout(self.limit);
            let line = line.with_context(|| format!("no end of `{command}`: {said:#?}"))?;
            match (line.as_str(), line.strip_prefix("| ")) {
                (_, Some(text)) => said.push(text.to_owned()),
                ("done", _) => return Ok(said),
                ("failed", _) => bail!("`{command}` failed:\n{}", said.join("\n")),
                _ => {}
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
