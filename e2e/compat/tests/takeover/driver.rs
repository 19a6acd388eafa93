//! The Java program that writes, reads and dumps: one process for a whole test, so that its producers and its group live through
//! every change of brokers.

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

/// How long a command may take.
const DEADLINE: Duration = Duration::from_mins(3);

/// The program; dropped, it is killed.
pub struct Driver {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl Driver {
    /// Compiles and starts it. What it says beside its answers goes to `driver.log` in the folder.
    pub fn start(jars: &Jars, folder: &Path, bootstrap: &str, directories: &[&Path]) -> Result<Self> {
        let classes = folder.join("classes");
        compile(jars, &Path::new(env!("CARGO_MANIFEST_DIR")).join("takeover/Takeover.java"), &classes)?;
        let directories = directories.iter().map(|path| path.to_str().context("a path that is text"));
        let directories = directories.collect::<Result<Vec<_>>>()?;
        let mut child = java_program(jars, &classes, "Takeover", &[&[bootstrap], &*directories].concat())?
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
        Ok(Self { child, commands, answers })
    }

    /// Has it do something; returns what it said.
    pub fn run(&mut self, command: &str) -> Result<Vec<String>> {
        writeln!(self.commands, "{command}")?;
        let mut said = Vec::new();
        loop {
            let line =
                self.answers.recv_timeout(DEADLINE).with_context(|| format!("no end of `{command}`: {said:#?}"))?;
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
