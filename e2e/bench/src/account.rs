//! What a broker's process costs: CPU by its cgroup's account where there is one, else by /proc; resident memory.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

/// Bytes that a broker may have in memory, its page cache included: the same for both.
const MEMORY_LIMIT: u64 = 2 << 30;

/// The account of one process and its children.
pub struct Account {
    process: u32,
    groups: Vec<PathBuf>,
    usage: Option<PathBuf>,
}

impl Account {
    /// Puts a process into cgroups of its own, where the machine lets us: CPU is then counted to the nanosecond, and its page
    /// cache is bounded, so that fresh pages of the machine are not what is measured.
    pub fn open(process: u32) -> Self {
        let mut account = Self { process, groups: Vec::new(), usage: None };
        for controller in ["cpuacct", "memory"] {
            let group = PathBuf::from(format!("/sys/fs/cgroup/{controller}/gregor-bench-{process}"));
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let limited = controller != "memory"
                || fs::write(group.join("memory.limit_in_bytes"), MEMORY_LIMIT.to_string()).is_ok();
            if limited && fs::write(group.join("cgroup.procs"), process.to_string()).is_ok() && controller == "cpuacct"
            {
                account.usage = Some(group.join("cpuacct.usage"));
            }
            account.groups.push(group);
        }
        account
    }

    /// CPU time since the account was opened, or since the process began.
    pub fn cpu(&self) -> Result<Duration> {
        if let Some(usage) = &self.usage {
            return Ok(Duration::from_nanos(fs::read_to_string(usage)?.trim().parse()?));
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has a command in brackets")?;
        let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in MiB.
    pub fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS in /proc/PID/status")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Removes the cgroups; the process has ended.
    pub fn close(&self) {
        for group in &self.groups {
            let _ = fs::remove_dir(group);
        }
    }
}
