//! Other programs, run with a deadline and an error that shows what they said.
//!
//! Called by everything in this crate, by `xtask` and by the end-to-end tests. It never leaves a child behind that ran
//! out of time, and never waits without a limit.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How much of a failed program's output an error shows.
const TAIL_BYTES: usize = 4_000;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Runs a program to its end and returns what it printed; an error shows the command line and the end of its output.
pub fn output(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start `{line}`; is the program installed?"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}:\n{}{}", output.status, tail(&text), tail(&errors));
    }
    Ok(text)
}

/// Runs a program to its end with `input` as its standard input.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut file = tempfile::tempfile().context("could not make a temporary file")?;
    std::io::Write::write_all(&mut file, input)?;
    std::io::Seek::rewind(&mut file)?;
    let line = command_line(command);
    let output = command.stdin(file).output().with_context(|| format!("could not start `{line}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "`{line}` ended with {}:\n{}{}",
            output.status,
            tail(&text),
            tail(&String::from_utf8_lossy(&output.stderr))
        );
    }
    Ok(text)
}

/// Runs a program with its output in `log`, and ends it with all its children at the deadline. `tick` is called about
/// every fifty milliseconds, for whoever shows progress.
pub fn run_logged(command: &mut Command, log: &Path, deadline: Duration, tick: impl FnMut()) -> Result<ExitStatus> {
    let file = append_to(log)?;
    run_piped(command, Stdio::null(), file.into(), log, deadline, tick)
}

/// The same with a standard input and output of the caller's; `log` gets what the program says on its standard error.
pub fn run_piped(
    command: &mut Command,
    input: Stdio,
    output: Stdio,
    log: &Path,
    deadline: Duration,
    mut tick: impl FnMut(),
) -> Result<ExitStatus> {
    let line = command_line(command);
    let mut child = command
        .stdin(input)
        .stdout(output)
        .stderr(append_to(log)?)
        .spawn()
        .with_context(|| format!("could not start `{line}`; is the program installed?"))?;
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            kill_tree(child.id());
            child.wait()?;
            bail!("`{line}` was ended after {} s, its limit; its output is in {}", deadline.as_secs(), log.display());
        }
        tick();
        thread::sleep(POLL_INTERVAL * 2);
    }
}

fn append_to(log: &Path) -> Result<File> {
    File::options().create(true).append(true).open(log).with_context(|| format!("could not write {}", log.display()))
}

/// Polls until `check` holds; an error names what was waited for and the last failure of the check.
pub fn wait_until(what: &str, deadline: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let state = check();
        match state {
            Ok(true) => return Ok(()),
            _ if Instant::now() < end => thread::sleep(POLL_INTERVAL * 5),
            Ok(false) => bail!("{what}: not so after {} s", deadline.as_secs()),
            Err(error) => return Err(error.context(format!("{what}: not so after {} s", deadline.as_secs()))),
        }
    }
}

/// The pids of the processes that `pid` started and that still run, nearest first.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (child, parent) in processes() {
        children.entry(parent).or_default().push(child);
    }
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        found.extend(children.get(&found[next]).into_iter().flatten().copied());
        next += 1;
    }
    found.split_off(1)
}

/// Ends a process and all that it started.
pub fn kill_tree(pid: u32) {
    let mut all = descendants(pid);
    all.insert(0, pid);
    for pid in all {
        kill(pid);
    }
}

/// Ends one process at once; one that is gone already is fine.
pub fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Whether a process runs (a zombie does not).
pub fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Every process of the machine with its parent.
fn processes() -> Vec<(u32, u32)> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    folder
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in brackets may hold anything, so what follows is counted from the last bracket.
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect()
}

/// The command as somebody would type it.
pub fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    if line.len() > 300 {
        line.truncate(line.floor_char_boundary(297));
        line.push_str("...");
    }
    line
}

/// The end of a text, for an error.
pub fn tail(text: &str) -> &str {
    &text[text.floor_char_boundary(text.len().saturating_sub(TAIL_BYTES))..]
}

/// The end of a file, for an error; empty when there is none.
pub fn tail_of_file(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let mut file = file;
        let from = length.saturating_sub(TAIL_BYTES as u64);
        if std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(from)).is_ok() {
            let _ = file.take(TAIL_BYTES as u64).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a program of this name is on the `PATH`.
pub fn installed(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo spoken >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("spoken") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_program_that_runs_out_of_time_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let error = run_logged(&mut command, &log, Duration::from_millis(500), || ()).unwrap_err().to_string();
        assert!(error.contains("its limit"), "{error}");
        let pid: u32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        wait_until("the child is gone", Duration::from_secs(5), || Ok(!runs(pid))).unwrap();
    }

    #[test]
    fn waiting_says_what_was_waited_for() {
        let error = wait_until("the moon is blue", Duration::ZERO, || Ok(false)).unwrap_err().to_string();
        assert!(error.contains("the moon is blue"), "{error}");
    }
}
